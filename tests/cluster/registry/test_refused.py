"""What ends a pull at once, with one sentence that says why."""

from collections import Counter

import pytest
from pulls import Json, Target


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 401}, "unauthorized.*APPTAINER_DOCKER_USERNAME"),
        ({"auth": "basic", "credentials": "no"}, "unauthorized.*APPTAINER_DOCKER_USERNAME"),
        ({"auth": "bearer", "credentials": "no"}, "unauthorized.*APPTAINER_DOCKER_USERNAME"),
        ({"status": 403}, "unauthorized.*APPTAINER_DOCKER_USERNAME"),
        ({"status": 404}, "has no latest"),
        ({"path": "third", "status": 404}, "has no sha256"),
    ],
    ids=["401", "basic", "bearer", "403", "404", "layer-404"],
)
def test_refusal_ends_a_pull_at_once(target: Target, fault: Json, reason: str) -> None:
    target.registry.faults(target.fault(**fault))
    target.start().fail(reason)
    assert Counter(x["path"] for x in target.log()).most_common(1)[0][1] <= 2  # 2 with a login
    target.pull_again(target.check_leftovers())


def test_system_trusts_the_real_registry(target: Target) -> None:
    """So its 404 is seen, without SSL_CERT_FILE."""
    image = "docker://nvcr.io/nvidia/nothing:latest"
    target.start(image, trusting=False).fail("has no latest of nvidia/nothing")
    target.check_leftovers()


def test_untrusted_certificate_is_one_sentence(target: Target) -> None:
    target.start(trusting=False).fail("SSL_CERT_FILE")
    assert target.check_leftovers() == set()
    target.pull_again(set())


@pytest.mark.parametrize(
    ("node", "host"), [("jrlogin01", "no-such-host.invalid"), ("jrc0101", "nvcr.io")]
)
def test_unknown_host_is_one_sentence(target: Target, node: str, host: str) -> None:
    target.start(f"docker://{host}/nvidia/jax:26.06-py3", node=node).fail(
        f"{host}.*compute nodes.*login node"
    )
    assert target.check_leftovers() == set()


def test_unreachable_proxy_is_reported_and_no_proxy_avoids_it(target: Target) -> None:
    nowhere = "http://jrlogin01:1"
    target.start(env={"https_proxy": nowhere}).fail("https_proxy")
    assert target.check_leftovers() == set()
    target.pull_again(set(), env={"https_proxy": nowhere, "no_proxy": "jrlogin01"})


@pytest.mark.parametrize("tag", ["arm64", "arm64-index"])
def test_wrong_architecture_is_one_sentence(target: Target, tag: str) -> None:
    target.start(target.image(tag)).fail("arm64.*amd64")
    assert target.check_leftovers() == set()
    assert target.gets() == []


@pytest.mark.parametrize("pinned", ["latest", "index"])
def test_other_manifest_than_the_digests_is_refused(target: Target, pinned: str) -> None:
    """By a digest in the image's name, and by one in an index."""
    tag, digest = target.registry.tags["latest"], "manifests/sha256:"
    target.registry.faults(target.fault(f"/{digest}", serve="other"))
    target.start(target.image(tag if pinned == "latest" else "index")).fail(tag)
    assert target.check_leftovers() == set()
    assert target.gets() == []


def test_missing_group_is_one_sentence(target: Target) -> None:
    stub = target.cluster.path(f"{target.folder}/stub")
    stub.mkdir()
    (stub / "apptainer").write_text(
        "#!/bin/sh\n# A stub: what JSC's apptainer says to who has not signed.\n"
        "echo User alice is not in group container and hence not authorized to use apptainer >&2\n"
        "echo Please visit JUDOOR to sign the Container Service Level Description >&2\n"
        "exit 1\n"
    )
    (stub / "apptainer").chmod(0o755)
    target.start(env={"PATH": f"{target.folder}/stub:/p/software/jaxway/bin:/usr/bin:/bin"}).fail(
        "JuDoor.*agree"
    )
    target.pull_again(target.check_leftovers())


def test_missing_apptainer_is_one_sentence(target: Target) -> None:
    target.start(env={"PATH": "/p/software/jaxway/bin"}).fail("no apptainer in PATH")
    target.pull_again(target.check_leftovers())


def test_missing_work_folder_is_one_sentence(target: Target) -> None:
    target.here(target.tmpdir).rmdir()
    target.start().fail(target.tmpdir)
    assert target.beside() <= {"x.sif.lock"}
    target.here(target.tmpdir).mkdir(mode=0o2777)
    target.here(target.tmpdir).chmod(0o2777)
    target.pull_again(set())


def test_missing_archive_is_one_sentence(target: Target) -> None:
    target.start("docker-archive:/p/scratch/training/none.tar").fail("none.tar")
    assert target.check_leftovers() == set()


@pytest.mark.parametrize("tag", ["path", "tag", "content"])
def test_part_without_a_digest_is_refused(target: Target, tag: str) -> None:
    target.start(target.image(tag)).fail("in its manifest is not a digest")
    assert target.check_leftovers() == set()


def test_invalid_manifest_is_one_sentence(target: Target) -> None:
    target.registry.faults(target.fault("/manifests/latest", corrupt=True))
    target.start().fail("sent something that is not an image")
    assert target.check_leftovers() == set()


def test_other_number_of_layers_than_in_the_configuration_is_one_sentence(target: Target) -> None:
    target.start(target.image("short")).fail("sent something that is not an image")
    assert target.check_leftovers() == set()


def test_file_that_is_no_sif_is_one_sentence(target: Target) -> None:
    target.cluster.run(f"echo hello > {target.folder}/fake.sif")
    target.start(f"{target.folder}/fake.sif").fail("fake.sif is not a SIF")
    assert target.check_leftovers() == set()
