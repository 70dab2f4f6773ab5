"""What a pull decides without a registry: whether the SIF is current, and what it asks for."""

import json

import pytest
from example_records import DIGEST, container_record, write_container_record
from jaxway.config.containers import digest_path, record_path
from jaxway.container import pull
from jaxway.container.registry import Image, Layer
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError

IMAGE = "docker://h.org/a:tag"


@pytest.fixture
def sif(tmp_path):
    """A SIF with its record."""
    file = tmp_path / "jax.sif"
    file.write_bytes(bytes(1000))
    write_container_record(file, IMAGE)
    return file


@pytest.fixture
def asked(monkeypatch):
    """What was asked for, by name and pinned digest; the image is always the same."""
    asked = list[tuple[str, str | None]]()

    def find_source(name, pinned):
        asked.append((name, pinned))
        return pull.Source(name, DIGEST)

    def build(source, part, work):
        raise UserError("JW113", "built")

    monkeypatch.setattr(pull, "apptainer_version", lambda: "1.4.5")
    monkeypatch.setattr(pull, "find_source", find_source)
    monkeypatch.setattr(pull, "build", build)
    return asked


def test_current_sif_is_not_built_again(sif, asked, tmp_path):
    before = sif.stat()
    pull.pull(IMAGE, sif, None)
    assert asked == [(IMAGE, None)]
    assert (sif.stat().st_ino, sif.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert digest_path(sif).read_text() == f"{DIGEST}\n"


def test_current_sif_gets_the_name_it_is_pulled_by(sif, asked):
    pull.pull("docker://h.org/a:newest", sif, None)
    assert ContainerRecord.read(record_path(sif)).image == "docker://h.org/a:newest"
    pinned = f"docker://h.org/a@{DIGEST}"  # is the same image, so the tag stays in the record
    pull.pull(pinned, sif, None)
    assert ContainerRecord.read(record_path(sif)).image == "docker://h.org/a:newest"


def test_record_without_a_version_gets_one(sif, asked):
    path = record_path(sif)
    content = json.loads(path.read_text())
    del content["schema_version"]
    path.write_text(json.dumps(content))
    pull.pull(IMAGE, sif, None)
    assert json.loads(path.read_text())["schema_version"] == 1


def test_deleted_sif_is_rebuilt_from_the_same_digest(sif, asked, tmp_path):
    sif.unlink()
    with pytest.raises(UserError, match="built"):
        pull.pull(IMAGE, sif, tmp_path)
    with pytest.raises(UserError, match="built"):
        pull.pull("docker://h.org/other", sif, tmp_path)
    assert asked == [(IMAGE, DIGEST), ("docker://h.org/other", None)]


@pytest.mark.parametrize("content", ['{"schema_version": 99}', "{"])
def test_sif_with_an_unreadable_record_is_built_again(sif, asked, tmp_path, content):
    record_path(sif).write_text(content)
    with pytest.raises(UserError, match="built"):
        pull.pull(IMAGE, sif, tmp_path)
    assert sif.exists()  # the old one stays, as the new one failed
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_layout_names_the_layers_as_they_are_stored(tmp_path):
    blobs = tmp_path / "blobs/sha256"
    blobs.mkdir(parents=True)
    for name in ("a", "b", "other"):
        (blobs / (name * 64)[:64]).write_bytes(name.encode())
    layers = [
        Layer("sha256:1", 9, f"application/x.tar+{kind}", 64 * name)
        for kind, name in (("gzip", "a"), ("zstd", "b"))
    ]
    assert pull.write_layout(tmp_path, Image(DIGEST, b"{}", tuple(layers))) == f"oci:{tmp_path}"
    index = json.loads((tmp_path / "index.json").read_text())
    manifest = blobs / index["manifests"][0]["digest"].removeprefix("sha256:")
    described = json.loads(manifest.read_text())["layers"]
    assert [(x["digest"], x["size"]) for x in described] == [
        (f"sha256:{64 * 'a'}", 1),
        (f"sha256:{64 * 'b'}", 1),
    ]
    assert [x["mediaType"].rpartition(".")[2] for x in described] == ["tar", "tar+zstd"]
    assert len([*blobs.iterdir()]) == 4  # two layers, configuration and manifest: no other image's


def test_missing_archive_is_refused():
    for name in ("docker-archive:/no/such.tar", "/no/such.sif"):
        with pytest.raises(UserError, match=r"there is no file /no/such\.") as error:
            pull.find_source(name, None)
        assert error.value.code == "JW110"
    assert pull.find_source("docker://python:3.11", None).digest is None
    assert container_record(digest=None).digest is None
