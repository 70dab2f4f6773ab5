"""What ends a pull at once, with one sentence that says why."""

import socket
from collections import Counter

import pytest
from jaxway.container import layers


@pytest.mark.parametrize(
    ("fault", "reason", "keeps"),
    [
        ({"status": 401}, "unauthorized.*APPTAINER_DOCKER_USERNAME", 0),
        ({"auth": "basic", "credentials": "no"}, "unauthorized.*APPTAINER_DOCKER_USERNAME", 0),
        ({"auth": "bearer", "credentials": "no"}, "unauthorized.*APPTAINER_DOCKER_USERNAME", 0),
        ({"status": 403}, "unauthorized.*APPTAINER_DOCKER_USERNAME", 0),
        ({"status": 404}, "has no latest", 0),
        ({"path": "third", "status": 404}, "has no sha256", 2),
    ],
    ids=["401", "basic", "bearer", "403", "404", "layer-404"],
)
def test_refusal_ends_a_pull_at_once(target, monkeypatch, fault, reason, keeps):
    monkeypatch.setattr(layers, "CONNECTIONS", 1)  # the one refused is the last
    target.registry.faults(target.fault(**fault))
    target.refused(reason, keeps=keeps)
    assert target.clock.pauses == []
    refused = [x["path"] for x in target.log() if x["status"] >= 400]
    assert Counter(refused).most_common(1)[0][1] <= 2  # 2 with a login


def test_untrusted_certificate(target, monkeypatch):
    with monkeypatch.context() as untrusting:
        untrusting.delenv("SSL_CERT_FILE")
        target.fails("SSL_CERT_FILE")
    target.pull()


def test_unknown_host(target, monkeypatch):
    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as offline:
        offline.setattr(socket, "getaddrinfo", getaddrinfo)
        target.fails("h.org is unknown.*compute nodes.*login node", "docker://h.org/jax:1")
    assert target.clock.pauses == []


def test_unreachable_proxy_is_reported_and_no_proxy_avoids_it(target, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://localhost:1")
    target.fails("https_proxy")
    monkeypatch.setenv("no_proxy", "localhost")
    target.pull()


@pytest.mark.parametrize("tag", ["arm64", "arm64-index"])
def test_wrong_architecture(target, tag):
    target.refused("arm64.*amd64", target.image(tag))


@pytest.mark.parametrize("pinned", ["latest", "index"])
def test_other_manifest_than_the_digests(target, pinned):
    """By a digest in the image's name, and by one in an index."""
    tag, digest = target.registry.tags["latest"], "manifests/sha256:"
    target.registry.faults(target.fault(f"/{digest}", serve="other"))
    target.refused(tag, target.image(tag if pinned == "latest" else "index"))


def test_missing_work_folder(target):
    target.tmpdir.rmdir()
    target.fails(str(target.tmpdir))
    target.tmpdir.mkdir()
    target.pull()


@pytest.mark.parametrize("tag", ["path", "tag", "content"])
def test_part_without_a_digest(target, tag):
    target.refused("in its manifest is not a digest", target.image(tag))


def test_invalid_manifest(target):
    target.registry.faults(target.fault("/manifests/latest", corrupt=True))
    target.refused("sent something that is not an image")


def test_other_number_of_layers_than_in_the_configuration(target):
    target.refused("sent something that is not an image", target.image("short"))


def test_file_that_is_no_sif(target, tmp_path):
    (tmp_path / "fake.sif").write_text("hello\n")
    target.refused("fake.sif is not a SIF", str(tmp_path / "fake.sif"))
