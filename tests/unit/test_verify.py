"""A container and its record: changes that are found, other images, records of other versions."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from example_records import DIGEST, container_record, write_container_record
from jaxway.config.containers import record_path
from jaxway.container import verify
from jaxway_shared.container_record import ContainerRecord, LayerRecord, Packages
from jaxway_shared.errors import UserError


@pytest.fixture
def sif(tmp_path):
    """A file with the record that pull would leave."""
    file = tmp_path / "jax.sif"
    file.write_bytes(bytes(1000))
    write_container_record(file, "docker://h.org/a")
    return file


def problem(sif, full=False, image=""):
    """Code and sentence of what is wrong."""
    found = verify.find_problem(sif, full, image)
    assert found
    return found.code, str(found)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)


def test_whole_container_has_no_problem(sif):
    assert not verify.find_problem(sif, full=False)
    assert not verify.find_problem(sif, full=True)
    sif.touch()
    assert not verify.find_problem(sif, full=False)


def test_one_flipped_bit_is_found(sif):
    status = sif.stat()
    flip_a_bit(sif)
    assert problem(sif) == ("JW140", f"{sif} has changed since it was made (sha256): {again(sif)}")
    os.utime(sif, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not verify.find_problem(sif, full=False)  # cheap: the time is the recorded one
    assert "has changed" in problem(sif, full=True)[1]


def again(sif):
    return f"remove it (`rm {sif}`), and the next run makes it again"


def test_other_size_is_found(sif):
    with sif.open("ab") as file:
        file.write(b"more")
    assert "has 1004 bytes, but 1000 when it was made" in problem(sif)[1]


def test_missing_record_is_one_sentence(sif):
    record_path(sif).unlink()
    assert problem(sif) == ("JW140", f"{sif}.json: No such file or directory; {again(sif)}")
    assert verify.read_record(sif) is None


def test_other_image_is_found(sif):
    code, sentence = problem(sif, image="docker://h.org/b")
    assert code == "JW141"
    assert sentence.startswith(f"{sif} leads to docker://h.org/a, not docker://h.org/b: ")
    assert "snakemake pull --forcerun pull" in sentence


@pytest.mark.parametrize("content", ['{"schema_version": 99}', '{"image": "a"}', "{", "[]"])
def test_record_that_cannot_be_read_is_one_sentence(sif, content):
    record_path(sif).write_text(content)
    code, sentence = problem(sif)
    assert code == "JW001"
    assert sentence.startswith(f"{sif}.json is ")
    assert sentence.endswith(f"remove the container (`rm -r {sif}`), and the next run makes it")
    assert verify.read_record(sif) is None


def test_record_without_a_version_is_of_the_first(sif):
    """As those are that lie beside containers from before there were versions."""
    path = record_path(sif)
    content = json.loads(path.read_text())
    for name in ("schema_version", "packages", "installed", "base"):
        del content[name]
    path.write_text(json.dumps(content))
    assert not verify.find_problem(sif, full=True, image="docker://h.org/a")


def test_folder_of_another_user_is_one_sentence(sif, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    code, sentence = problem(sif)
    assert code == "JW142"
    assert sentence.startswith(f"you may not read {sif}: ask its owner")
    with pytest.raises(UserError, match=f"you may not read {sif}"):
        verify.exists(sif)


def test_written_record_is_read(tmp_path):
    base = container_record(layers=(LayerRecord(DIGEST, 5),), labels={"a": "b"})
    packages = Packages(["einops==0.8.0"], [])
    record = dataclasses.replace(base, packages=packages, installed=("einops==0.8.0",), base=base)
    for each in (base, record):
        path = tmp_path / "jax.sif.json"
        path.write_text(json.dumps(each.to_json()))
        assert ContainerRecord.read(path) == each


def test_pinned_image_is_the_same_also_with_packages_on_top():
    base = container_record("docker://h.org/a:tag", digest=DIGEST)
    for record in (base, dataclasses.replace(base, digest=f"sha256:{13:064}", base=base)):
        assert record.same_image("docker://h.org/a:tag")
        assert record.same_image(f"docker://h.org/a@{DIGEST}")
        assert not record.same_image(f"docker://h.org/a@sha256:{13:064}")


def test_identity_without_a_digest_is_the_files_hash():
    assert container_record().identity == DIGEST
    assert container_record(digest=None).identity == 64 * "a"
