"""Pull without a registry: names, places, credentials, and what tells a changed container."""

import gzip
import hashlib
import io
import json
import os
import random

import pytest
import requests
import urllib3
from jaxway.container import pull, registry, verify

DIGEST = f"sha256:{12:064}"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("docker://nvcr.io/nvidia/jax:24.10-py3", ("nvcr.io", "nvidia/jax", "24.10-py3")),
        ("docker://localhost:5000/a/b", ("localhost:5000", "a/b", "latest")),
        (f"docker://h.org/a@{DIGEST}", ("h.org", "a", DIGEST)),
        (f"docker://h.org/a:tag@{DIGEST}", ("h.org", "a", DIGEST)),
        ("oras://h.org/a:tag", ("h.org", "a", "tag")),
        ("docker://python:3.11", None),
        ("docker://nvidia/cuda", None),
        ("docker-archive:/tmp/jax.tar", None),
        ("/tmp/jax.sif", None),
    ],
)
def test_parse(image, parts):
    assert pull.parse(image) == parts


@pytest.mark.parametrize("pin", ["sha256:12", "sha512:" + 128 * "0", "latest"])
def test_what_is_no_digest_pins_nothing(pin):
    with pytest.raises(SystemExit, match="64 hexadecimal digits"):
        pull.parse(f"docker://h.org/a@{pin}")


def test_password_in_the_images_name_is_refused_and_not_repeated():
    with pytest.raises(SystemExit, match="APPTAINER_DOCKER_PASSWORD") as refused:
        pull.parse("docker://alice:secret@h.org/a:tag")
    assert "secret" not in str(refused.value)


GB = 10**9


def test_works_where_there_is_room(tmp_path, monkeypatch):
    sif, small, large = tmp_path / "jax.sif", tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    monkeypatch.setenv("APPTAINER_TMPDIR", str(small))
    monkeypatch.setenv("TMPDIR", str(large))
    real = pull.os.statvfs(tmp_path)

    def statvfs(place):
        free = {small: GB, large: 9 * GB}.get(place, 0)
        blocks = free // real.f_frsize
        return type(real)((*real[:4], blocks, real.f_files, 10**9, 10**9, *real[8:]))

    monkeypatch.setattr(pull.os, "statvfs", statvfs)
    assert pull.choose_work_folder(sif, None, GB // 2).parent == small
    assert pull.choose_work_folder(sif, None, 2 * GB).parent == large
    assert pull.choose_work_folder(sif, small, 2 * GB).parent == small  # asked for
    nowhere = pull.choose_work_folder(sif, None, 20 * GB)
    assert nowhere.parent == tmp_path
    assert nowhere.stat().st_mode & 0o777 == 0o700
    assert pull.choose_work_folder(tmp_path / "other.sif", None, 20 * GB) != nowhere


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"Retry-After": "7"}, 7), ({"Retry-After": "soon"}, None), ({}, None)],
)
def test_retry_after(header, seconds):
    answer = requests.Response()
    answer.headers.update(header)
    assert registry.retry_after(answer) == seconds


def test_retry_after_as_a_date(monkeypatch):
    monkeypatch.setattr(registry.time, "time", lambda: 784111770.0)
    answer = requests.Response()
    answer.headers["Retry-After"] = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110, section 5.6.7
    assert registry.retry_after(answer) == 7


def test_credentials_come_from_the_variables_then_from_a_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert registry.credentials("h.org") is None
    login = tmp_path / ".docker/config.json"
    login.parent.mkdir()
    login.write_text(json.dumps({"auths": {"h.org": {"auth": "YWxpY2U6YTpi"}}}))  # alice:a:b
    assert registry.credentials("h.org") == ("alice", "a:b")
    assert registry.credentials("other.org") is None
    monkeypatch.setenv("APPTAINER_DOCKER_USERNAME", "bob")
    monkeypatch.setenv("APPTAINER_DOCKER_PASSWORD", "c")
    assert registry.credentials("h.org") == ("bob", "c")


TEXT = random.Random(0).randbytes(2_000) * 500  # 1 MB that gzip packs well


def layer(packed, content):
    """A layer of which the content is to stay."""
    kept = hashlib.sha256(content).hexdigest()
    return {"digest": registry.sha256(packed), "size": len(packed), "kept": kept}


class Line:
    """A connection that breaks before byte ``cut``, once; it knows ranges if it should."""

    def __init__(self, content, cut=None, ranges=True):
        self.content, self.cut, self.ranges, self.asked = content, cut, ranges, []

    def get(self, path, headers):
        asked = headers.get("Range", "")
        self.asked.append(asked)
        start = int(asked[6:-1]) if asked and self.ranges else 0
        answer = requests.Response()
        answer.status_code = 206 if start else 200
        answer.raw = self
        self.left, self.cut = io.BytesIO(self.content[start : self.cut]), None
        self.whole = start + len(self.left.getvalue()) == len(self.content)
        return answer

    def stream(self, amount, decode_content):
        yield from iter(lambda: self.left.read(777), b"")
        if not self.whole:
            raise urllib3.exceptions.ProtocolError("cut")

    def close(self):
        """As an answer's."""

    release_conn = close


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetches layers over a line; returns the files that came of it, and what it said."""
    monkeypatch.setattr(registry.time, "sleep", lambda seconds: None)

    def fetch(line, *layers):
        told = list[str]()
        repository = registry.Repository("h.org", "a", told.append)
        monkeypatch.setattr(repository, "get", line.get)
        repository.fetch([*layers], tmp_path)
        return {file.name: file.read_bytes() for file in tmp_path.iterdir()}, told

    return fetch


ONE, TWO = gzip.compress(TEXT, mtime=0), gzip.compress(TEXT[:9_999]) + gzip.compress(TEXT[9_999:])


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("packed", [ONE, TWO, TEXT], ids=["gzip", "two", "plain"])
def test_layer_is_unpacked_while_it_arrives(fetch, packed, ranges):
    there, line = layer(packed, TEXT), Line(packed, len(packed) // 2, ranges)
    files, told = fetch(line, there, there)
    assert files == {there["kept"]: TEXT}
    assert line.asked == ["", f"bytes={len(packed) // 2}-"]
    size = f"{len(packed) / 1e6:,.0f}"
    assert told[-1].startswith(f"layers: 1 of 1 are here, {size} of {size} MB")


def flipped(content):
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.parametrize(
    ("sent", "there"),
    [
        (flipped(ONE), layer(ONE, TEXT)),
        (flipped(TEXT), layer(TEXT, TEXT)),
        (ONE, layer(ONE, flipped(TEXT))),
        (gzip.compress(TEXT, mtime=1), layer(ONE, TEXT)),
        (TEXT, layer(TEXT, TEXT[1:])),
    ],
    ids=["gzip", "plain", "other-content", "other-gzip", "no-gzip"],
)
def test_damaged_layer_does_not_stay(fetch, tmp_path, sent, there):
    line = Line(sent)
    with pytest.raises(registry.RegistryError, match="arrived damaged, 5 times"):
        fetch(line, there)
    assert line.asked == [""] * 5
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def sif(tmp_path):
    """A file with the record that pull would leave."""
    file = tmp_path / "jax.sif"
    file.write_bytes(bytes(1000))
    record = {"image": "docker://h.org/a", "date": "today", **verify.measures(file)}
    verify.record_of(file).write_text(json.dumps(record))
    return file


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)


def test_whole_container_has_no_problem(sif):
    assert verify.problem(sif, full=False) == ""
    assert verify.problem(sif, full=True) == ""
    sif.touch()
    assert verify.problem(sif, full=False) == ""


def test_one_flipped_bit_is_found(sif):
    made = sif.stat()
    flip_a_bit(sif)
    assert "has changed" in verify.problem(sif, full=False)
    os.utime(sif, ns=(made.st_atime_ns, made.st_mtime_ns))
    assert verify.problem(sif, full=False) == ""  # cheap: the time is the recorded one
    assert "has changed" in verify.problem(sif, full=True)


def test_pinned_image_is_the_same_also_with_packages_on_top():
    base = {"image": "docker://h.org/a:tag", "digest": DIGEST}
    packaged = base | {"digest": f"sha256:{13:064}", "base": base}
    for record in (base, packaged):
        assert verify.same_image("docker://h.org/a:tag", record)
        assert verify.same_image(f"docker://h.org/a@{DIGEST}", record)
        assert not verify.same_image(f"docker://h.org/a@sha256:{13:064}", record)


def test_other_size_and_missing_record_are_found(sif):
    with sif.open("ab") as file:
        file.write(b"more")
    assert "has 1004 bytes, but was made with 1000" in verify.problem(sif, full=False)
    verify.record_of(sif).unlink()
    assert f"`rm {sif}`" in verify.problem(sif, full=False)
