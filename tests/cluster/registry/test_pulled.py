"""What a pull makes: the SIF and its record, of images and files of every kind."""

import shutil

import pytest
from pulls import Target, sha256


@pytest.mark.parametrize("tag", ["latest", "index"])
def test_record_says_what_is_in_the_sif(target: Target, tag: str) -> None:
    target.start(target.image(tag)).succeed()
    record = target.check_sif()
    assert record["image"] == target.image(tag)
    assert record["digest"] == target.registry.tags[tag]
    assert record["labels"]["jaxway.test"] == "a label"
    assert [x["digest"] for x in record["layers"]] == target.registry.layers
    assert {f"squashfs-root/{x}" for x in ("first", "second", "third")} <= files_in(target)
    assert compressor(target) == 6


def files_in(target: Target) -> set[str]:
    start = target.here(target.sif).read_bytes().find(b"hsqs")
    return {*target.cluster.run(["unsquashfs", "-l", "-o", str(start), target.sif]).stdout.split()}


def test_layers_may_be_packed_in_any_way(target: Target) -> None:
    """By zstd, by gzip in two parts, not at all; and one of them is there twice."""
    target.start(target.image("mixed")).succeed()
    record = target.check_sif()
    assert {f"squashfs-root/{x}" for x in ("first", "second", "third")} <= files_in(target)
    first, second, third, again = (x["digest"] for x in record["layers"])
    assert again == second
    blobs = [x["path"].rpartition("/")[2] for x in target.log() if "/blobs/" in x["path"]]
    assert sorted(blobs[1:]) == sorted([first, second, third])  # after the configuration


def test_second_pull_has_nothing_to_do(good: Target) -> None:
    sif, requests = good.here(good.sif), len(good.gets())
    before = sif.stat()
    good.start().succeed()
    good.check_sif()
    assert len(good.gets()) == requests == 3
    assert (sif.stat().st_ino, sif.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_sif_in_a_registry_arrives_as_it_is(target: Target, good: Target) -> None:
    shutil.copy(good.here(good.sif), target.registry.folder / "image.sif")
    target.start(target.image("sif", "oras")).succeed()
    assert target.check_sif()["sha256"] == sha256(good.here(good.sif))


def test_archive_of_docker_becomes_a_sif(target: Target, archive: str) -> None:
    target.start(f"docker-archive:{archive}").succeed()
    target.check_sif()


def test_local_sif_arrives_as_it_is(target: Target, good: Target) -> None:
    target.start(good.sif).succeed()
    assert target.check_sif()["sha256"] == sha256(good.here(good.sif))


@pytest.mark.parametrize(
    ("tool", "stub"),
    [
        ("mksquashfs", 'case "$*" in *"comp zstd"*) exit 1;; esac; exec /usr/bin/mksquashfs "$@"'),
        ("squashfuse_ll", "exit 1"),
    ],
    ids=["make", "mount"],
)
def test_host_that_cannot_use_zstd_gets_gzip(target: Target, tool: str, stub: str) -> None:
    """A stub of the tool stands for a host whose own cannot make zstd, or mount it."""
    file = target.cluster.path(f"{target.folder}/bin") / tool
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{stub}\n")
    file.chmod(0o755)
    path = f"{target.folder}/bin:/p/software/jaxway/bin:/usr/bin:/bin"
    output = target.start(env={"PATH": path}).succeed()
    assert "using gzip" in output
    target.check_sif()
    assert compressor(target) == 1


def compressor(target: Target) -> int:
    """Which compression the SIF's squashfs has, by its superblock: 1 is gzip, 6 is zstd."""
    content = target.here(target.sif).read_bytes()
    return int.from_bytes(content[content.find(b"hsqs") + 20 :][:2], "little")


def test_pinned_digest_is_pulled(target: Target) -> None:
    digest = target.registry.tags["latest"]
    target.start(target.image(digest)).succeed()
    assert target.check_sif()["digest"] == digest


def test_anybodys_token_is_fetched(target: Target) -> None:
    target.registry.faults(target.fault(auth="bearer"))
    target.start().succeed()
    target.check_sif()


def test_proxy_is_used(target: Target) -> None:
    host, proxy = f"jrlogin01:{target.registry.port}", f"http://jrlogin01:{target.registry.proxy}"
    connects = [x for x in target.registry.log() if x.get("method") == "CONNECT"]
    target.start(env={"https_proxy": proxy}).succeed()
    new = [x for x in target.registry.log() if x.get("method") == "CONNECT"][len(connects) :]
    assert {x["path"] for x in new} == {host}
    target.check_sif()
