"""What a pull decides without a registry: what is there already, and what it asks for."""

import json
import subprocess

import pytest
from example_records import DIGEST, container_record, write_container_record
from jaxway.config.containers import digest_path, record_path
from jaxway.container import pull, store, verify
from jaxway.container.registry import Image, Layer
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError

IMAGE, OTHER = "docker://h.org/a:tag", "docker://h.org/a:other"


@pytest.fixture
def sif(tmp_path):
    """The site's link, in a folder where one container lies."""
    link = tmp_path / "shared/jax.sif"
    link.parent.mkdir()
    container = store.path_of(link, IMAGE, DIGEST)
    container.write_bytes(bytes(1000))
    write_container_record(container, IMAGE)
    store.lead(link, container.name)
    return link


@pytest.fixture
def run(tmp_path):
    """Link of a run."""
    return tmp_path / "run/results/container/jax.sif"


@pytest.fixture
def asked(monkeypatch):
    """What was asked for, by name and pinned digest; a tag always means the same image."""
    asked = list[tuple[str, str | None]]()

    def find_source(name, pinned):
        asked.append((name, pinned))
        return pull.Source(name, pinned or DIGEST)

    def build(source, part, work):
        part.write_bytes(source.name.encode())

    monkeypatch.setattr(pull, "apptainer_version", lambda: "1.4.5")
    monkeypatch.setattr(pull, "find_source", find_source)
    monkeypatch.setattr(pull, "build", build)
    return asked


def test_what_is_there_is_not_built_again(sif, asked, capsys):
    before = sif.stat()
    pull.pull(IMAGE, sif, None, None)
    assert asked == [(IMAGE, None)]
    assert (sif.stat().st_ino, sif.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert f"is {DIGEST} already" in capsys.readouterr().out


def test_first_pull_of_a_run_takes_what_others_pulled_by_this_name(sif, run, asked, capsys):
    pull.pull(IMAGE, sif, run, None)
    assert asked == []
    assert "pulled before" in capsys.readouterr().out
    assert run.resolve() == sif.resolve()
    assert ContainerRecord.read(record_path(run)).image == IMAGE
    assert digest_path(run).read_text() == f"{DIGEST}\n"
    pull.pull(IMAGE, sif, run, None)  # a second one means to ask
    assert asked == [(IMAGE, None)]


def test_files_are_not_believed_by_their_name(sif, run, asked):
    write_container_record(sif.resolve(), "docker-archive:one.tar")
    pull.pull("docker-archive:one.tar", sif, run, None)
    assert asked == [("docker-archive:one.tar", None)]


def test_the_same_image_has_for_each_run_the_name_it_was_pulled_by(sif, run, asked, tmp_path):
    pull.pull(OTHER, sif, run, None)
    assert ContainerRecord.read(record_path(run)).image == OTHER
    assert ContainerRecord.read(record_path(sif.resolve())).image == IMAGE
    assert store.is_locked(run)
    times = record_path(run).stat().st_mtime_ns, digest_path(run).stat().st_mtime_ns
    pull.pull(OTHER, sif, run, None)
    assert times == (record_path(run).stat().st_mtime_ns, digest_path(run).stat().st_mtime_ns)


def test_with_a_key_the_registry_is_asked_whatever_is_there(sif, run, asked, tmp_path):
    """Here it has no image, so no signature."""
    key = tmp_path / "site.pub"
    new = subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519"], stdout=subprocess.PIPE)
    subprocess.run(["openssl", "pkey", "-pubout", "-out", key], input=new.stdout, check=True)
    with pytest.raises(UserError, match="is in no registry"):
        pull.pull(IMAGE, sif, run, None, key)
    pull.pull(IMAGE, sif, run, None)
    lost = sif.resolve()
    lost.write_bytes(lost.read_bytes() + b"made again")
    write_container_record(lost, IMAGE)
    with pytest.raises(UserError, match="is in no registry"):
        pull.pull(IMAGE, sif, run, None, key)
    assert asked == [(IMAGE, None), (IMAGE, DIGEST)]


def test_another_image_lies_beside_and_leaves_the_runs_of_the_first_alone(
    sif, run, asked, tmp_path, monkeypatch
):
    pull.pull(IMAGE, sif, run, None)
    second = f"sha256:{'d' * 64}"
    monkeypatch.setattr(pull, "find_source", lambda name, pinned: pull.Source(name, second))
    bobs = tmp_path / "bob/results/container/jax.sif"
    pull.pull(OTHER, sif, bobs, tmp_path)
    assert bobs.read_bytes() == OTHER.encode()
    assert run.read_bytes() == bytes(1000)
    assert sif.resolve() == bobs.resolve()  # the link for people
    assert [store.is_locked(x) for x in (run, bobs)] == [True, True]
    names = {"jax.sif", f"jax-tag-{DIGEST[7:19]}.sif", f"jax-other-{second[7:19]}.sif"}
    assert {x.name for x in sif.parent.glob("*.sif")} == names


def test_what_a_run_has_lost_is_made_again_as_it_was(sif, run, asked, tmp_path):
    pull.pull(IMAGE, sif, run, None)
    run.resolve().unlink()
    pull.pull(IMAGE, sif, run, tmp_path)
    assert asked == [(IMAGE, DIGEST)]
    assert run.read_bytes() == IMAGE.encode()
    assert store.is_locked(run)


def test_run_needs_no_more_than_its_own_record(sif, run, asked):
    """The one beside the container may be purged."""
    pull.pull(IMAGE, sif, run, None)
    record_path(sif.resolve()).unlink()
    assert store.is_locked(run)
    run.resolve().unlink()
    assert not store.is_locked(run)


def test_run_learns_that_another_user_made_its_container_again(sif, run, asked, tmp_path):
    pull.pull(IMAGE, sif, run, None)
    run.resolve().unlink()
    pull.pull(IMAGE, sif, tmp_path / "bob.sif", tmp_path)
    assert run.exists()
    assert not store.is_locked(run)
    asked.clear()
    pull.pull(IMAGE, sif, run, None)
    assert asked == []  # it is the same image
    assert store.is_locked(run)
    assert not verify.find_problem(run, full=True, image=IMAGE)


@pytest.mark.parametrize("content", ['{"schema_version": 99}', "{"])
def test_sif_with_an_unreadable_record_is_built_again(sif, asked, tmp_path, content):
    record_path(sif.resolve()).write_text(content)
    pull.pull(IMAGE, sif, None, tmp_path)
    assert sif.read_bytes() == IMAGE.encode()
    assert [x.name for x in tmp_path.iterdir() if x.is_dir()] == ["shared"]


# ------------------------------------------------------------------------------------ plain files


@pytest.fixture
def plain(sif):
    """A file in the place of the link."""
    for path in sif.parent.iterdir():
        path.unlink()
    sif.write_bytes(b"plain")
    return sif


@pytest.fixture
def labels(monkeypatch):
    """What Apptainer says of a SIF that it pulled itself."""
    names = {"bootstrap": "docker", "from": "h.org/a:tag"}
    labels = {f"{store.LABEL}.singularity.deffile.{name}": x for name, x in names.items()}
    monkeypatch.setattr(store, "labels_of", lambda sif: labels)
    return labels


def test_container_from_before_there_were_links_gets_a_name(plain, run, asked):
    write_container_record(plain, IMAGE)
    digest_path(plain).write_text(f"{DIGEST}\n")
    pull.pull(IMAGE, plain, run, None)
    assert asked == []
    container = store.path_of(plain, IMAGE, DIGEST)
    assert run.resolve() == plain.resolve() == container
    assert container.read_bytes() == b"plain"
    assert not record_path(plain).exists()
    assert not digest_path(plain).exists()


def test_container_of_the_manual_way_is_told_what_it_is(plain, run, asked, labels, capsys):
    pull.pull(IMAGE, plain, run, None)
    assert asked == []
    assert f"of {IMAGE}" in capsys.readouterr().out
    record = ContainerRecord.read(record_path(run))
    assert (record.image, record.digest, record.labels) == (IMAGE, None, labels)
    assert plain.resolve().name == f"jax-tag-{record.sha256[:12]}.sif"
    assert run.read_bytes() == b"plain"


def test_container_of_the_manual_way_that_is_another_image_stays_beside(
    plain, run, asked, labels, tmp_path
):
    pull.pull(OTHER, plain, run, tmp_path)
    assert asked == [(OTHER, None)]
    assert run.read_bytes() == OTHER.encode()
    images = {record.image for record in store.containers(plain).values()}
    assert images == {IMAGE, OTHER}


def test_container_that_another_user_owns_is_adopted(plain, run, asked, labels, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(store.os, "link", refuse)
    pull.pull(IMAGE, plain, run, None)
    assert run.read_bytes() == b"plain"


def test_what_is_no_sif_is_replaced(plain, run, asked, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(store, "labels_of", lambda sif: None)
    pull.pull(IMAGE, plain, run, tmp_path)
    assert "no SIF that Apptainer can read" in capsys.readouterr().out
    assert run.read_bytes() == IMAGE.encode()


# ------------------------------------------------------------------------------ layouts, sources


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
