"""What Apptainer makes of what was pulled, and the record of it; tests/unit/pull has more."""

import pytest
from pulls import Target


def test_record_says_what_is_in_the_sif(target: Target) -> None:
    target.start(target.image("index")).succeed()
    record = target.check_sif()
    assert record["image"] == target.image("index")
    assert record["digest"] == target.registry.tags["index"]
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


def test_archive_of_docker_becomes_a_sif(target: Target, archive: str) -> None:
    target.start(f"docker-archive:{archive}").succeed()
    target.check_sif()


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
