"""Downloads of layers: decompressed and checked while they arrive, over lines that break."""

import gzip
import hashlib
import io
import random

import pytest
import requests
import urllib3
from jaxway.container import layers as layers_module
from jaxway.container import registry
from jaxway.container.registry import Layer

TEXT = random.Random(0).randbytes(2_000) * 500  # 1 MB that gzip packs well


def layer(sent, content):
    """A layer of which the content is stored."""
    stored = hashlib.sha256(content).hexdigest()
    return Layer(registry.sha256_digest(sent), len(sent), "", stored)


class Line:
    """A connection that breaks before these bytes, one after the other; it may know ranges."""

    def __init__(self, content, *cuts, ranges=True):
        self.content, self.cuts, self.ranges, self.asked = content, [*cuts], ranges, []

    def get(self, path, headers):
        asked = headers.get("Range", "")
        self.asked.append(asked)
        start = int(asked[6:-1]) if asked and self.ranges else 0
        answer = requests.Response()
        answer.status_code = 206 if start else 200
        answer.raw = self
        self.left = io.BytesIO(self.content[start : self.cuts.pop(0) if self.cuts else None])
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
def download(tmp_path, monkeypatch):
    """Downloads layers over a line; returns the files that came of it, and what it logged."""
    monkeypatch.setattr(registry.time, "sleep", lambda seconds: None)

    def download(line, *layers):
        lines = list[str]()
        repository = registry.Repository("h.org", "a", lines.append)
        monkeypatch.setattr(repository, "get", line.get)
        layers_module.download(repository, layers, tmp_path)
        return {file.name: file.read_bytes() for file in tmp_path.iterdir()}, lines

    return download


ONE, TWO = gzip.compress(TEXT, mtime=0), gzip.compress(TEXT[:9_999]) + gzip.compress(TEXT[9_999:])


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("sent", [ONE, TWO, TEXT], ids=["gzip", "two", "plain"])
def test_layer_is_decompressed_while_it_arrives(download, sent, ranges):
    wanted, line = layer(sent, TEXT), Line(sent, len(sent) // 2, ranges=ranges)
    files, lines = download(line, wanted, wanted)
    assert files == {wanted.stored_sha256: TEXT}
    assert line.asked == ["", f"bytes={len(sent) // 2}-"]
    size = f"{len(sent) / 1e6:,.0f}"
    assert lines[-1].startswith(f"layers: 1 of 1 downloaded, {size} of {size} MB")


def test_line_without_ranges_that_breaks_in_turns_is_given_up(download, tmp_path):
    """Only what is further than ever is progress: else 40, 60 and 50 % go on without end."""
    cuts = [len(ONE) * percent // 100 for percent in (40, 60, 50)]
    line = Line(ONE, *cuts * 100, ranges=False)
    with pytest.raises(registry.RegistryError, match="the connection broke: cut, 5 times"):
        download(line, layer(ONE, TEXT))
    assert len(line.asked) == 2 + len(registry.BACKOFF_S)  # 40 and 60 % are progress
    assert [*tmp_path.iterdir()] == []


def test_line_with_ranges_that_breaks_often_delivers(download):
    cuts = [len(ONE) * percent // 20 for percent in range(1, 20)]
    files, _ = download(Line(ONE, *cuts), wanted := layer(ONE, TEXT))
    assert files == {wanted.stored_sha256: TEXT}


def flipped(content):
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (flipped(ONE), layer(ONE, TEXT)),
        (flipped(TEXT), layer(TEXT, TEXT)),
        (ONE, layer(ONE, flipped(TEXT))),
        (gzip.compress(TEXT, mtime=1), layer(ONE, TEXT)),
        (TEXT, layer(TEXT, TEXT[1:])),
    ],
    ids=["gzip", "plain", "other-content", "other-gzip", "no-gzip"],
)
def test_damaged_layer_does_not_stay(download, tmp_path, sent, wanted):
    line = Line(sent)
    with pytest.raises(registry.RegistryError, match="arrived damaged, 5 times"):
        download(line, wanted)
    assert line.asked == [""] * 5
    assert [*tmp_path.iterdir()] == []
