"""What a pull makes of images and files of every kind, and what it asks the registry for."""

import pytest


@pytest.mark.parametrize("tag", ["latest", "index"])
def test_record_says_what_is_in_the_sif(target, tag):
    record = target.pull(target.image(tag))
    assert record.image == target.image(tag)
    assert record.digest == target.registry.tags[tag]
    assert record.labels["jaxway.test"] == "a label"
    assert [x.digest for x in record.layers] == target.registry.layers


def test_layers_may_be_packed_in_any_way(target):
    """By zstd, by gzip in two parts, not at all; and one of them is there twice."""
    record = target.pull(target.image("mixed"))
    first, second, third, again = (x.digest for x in record.layers)
    assert again == second
    blobs = [x["path"].rpartition("/")[2] for x in target.log() if "/blobs/" in x["path"]]
    assert sorted(blobs[1:]) == sorted([first, second, third])  # after the configuration


def test_second_pull_has_nothing_to_do(target):
    target.pull()
    before = target.sif.stat()
    target.pull()
    assert len(target.gets()) == 3
    assert (target.sif.stat().st_ino, target.sif.stat().st_mtime_ns) == (
        *(before.st_ino, before.st_mtime_ns),
    )


def test_sif_is_taken_as_it_is(target, tmp_path):
    """From a registry, and from a file."""
    target.pull()
    made = target.sif.read_bytes()
    (target.registry.folder / "image.sif").write_bytes(made)
    (tmp_path / "one.sif").write_bytes(made)
    for image in (target.image("sif", "oras"), str(tmp_path / "one.sif")):
        for file in target.sif.parent.iterdir():
            file.unlink()
        target.pull(image)
        assert target.sif.read_bytes() == made


def test_pinned_digest_is_pulled(target):
    digest = target.registry.tags["latest"]
    assert target.pull(target.image(digest)).digest == digest


def test_old_sif_survives_a_failed_pull(target):
    target.pull()
    before = {file: file.read_bytes() for file in target.sif.parent.iterdir()}
    target.registry.faults(target.fault(status=404))
    target.fails("has no index", target.image("index"))
    assert {file: file.read_bytes() for file in target.sif.parent.iterdir()} == before


def test_proxy_is_used(target, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{target.registry.proxy}")
    connects = len(target.registry.log())
    target.pull()
    new = [x["path"] for x in target.registry.log()[connects:] if x.get("method") == "CONNECT"]
    assert {*new} == {f"localhost:{target.registry.port}"}
