"""What a file is, by its bytes: read as text, also compressed, or refused by name."""

import bz2
import collections
import gzip
import lzma
import random
from pathlib import Path

import pytest
from jaxway.data import sources
from jaxway.data.find import File
from jaxway.data.sources import NO_PROGRESS, TextFile
from jaxway_shared.errors import UserError
from prepared import load, train_tokens
from random_files import random_files, zstd

BOM = b"\xef\xbb\xbf"


def look(path: Path) -> UserError | None:
    return sources.look(File(path, path.stat().st_size, 0), "text").error


def outcome(path: Path) -> bytes | UserError:
    """The text that is learned of a file, or why none is."""
    file = File(path, path.stat().st_size, 0)
    try:
        found = sources.scan(file, 0, False, NO_PROGRESS)
        if isinstance(found, TextFile):
            return b"".join(sources.read_verified(found, NO_PROGRESS))
        return b"".join(sources.read_table(path, found, "text", NO_PROGRESS))
    except UserError as error:
        return error


@pytest.mark.parametrize("seed", [0, 1])
def test_300_random_files_are_read_as_text_or_refused_by_name(tmp_path, seed):
    seen = collections.Counter[str]()
    for number, file in enumerate(random_files(seed, 300, tmp_path)):
        path = tmp_path / f"{number}.txt"  # which says nothing
        path.write_bytes(file.content)
        found = outcome(path)
        if file.text is None:
            sentence = str(found)
            assert isinstance(found, UserError) and found.code in ("JW183", "JW187"), file.what
            assert str(path) in sentence and file.kind in sentence, file.what
            assert "\n" not in sentence
            # Before anything is queued; but of a table only the first row.
            assert str(look(path)) == sentence or "JSON lines" in file.what, file.what
        else:
            assert found == file.text, file.what
            assert not look(path)
        seen[file.what if file.text is None else "text"] += 1
    assert seen["text"] > 50 and len(seen) > 50


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'[1, "a"]\n[2, "b"]\n', "JSON lines without objects: line 1 is something else"),
        (b'[\n  {"instruction": "Write"}\n]\n', "JSON"),
        (b'["Once upon a time", "there was"]', "JSON"),
        (b"%!PS-Adobe-3.0\n0 0 moveto\n", "PostScript"),
        (b"/annex/objects/SHA256E-s4--00.txt\n", "a pointer of git-annex"),
        (b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n", "PDF"),
        (b"{\\rtf1\\ansi text}", "RTF"),
        (b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\nText of a page.\r\n", "a WARC archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        ("Привет".encode("utf-16-be"), "binary"),  # all of it characters of ASCII
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), "compressed with gzip"),
        (zstd.compress(gzip.compress(b"text", mtime=0)), "compressed with gzip"),
        (gzip.compress(b"text", mtime=0) + b"and more", "compressed and damaged"),
        (b"\xff", "text in another encoding"),
    ],
)
def test_content_that_looks_like_text_is_refused(tmp_path, content, kind):
    (tmp_path / "a.txt").write_bytes(content)
    assert f"a.txt is {kind}" in str(outcome(tmp_path / "a.txt"))
    assert f"a.txt is {kind}" in str(look(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a, BM, PAR1 and ORC are formats.",
        b"id,text\n1,a\n",
        b'{\n  "name": "one document of JSON"\n}\n',
        pytest.param(b"[" * 50_000 + b"\n" + b"]" * 50_000, id="more than a parser can nest"),
        b"crawled text with \x7f in it, \x1b[31mred\x1b(B\x1b[m, and DOS\r\n\x1a",
        pytest.param("ÄÖÜ".encode() * 40_000, id="a head that ends amid a character"),
    ],
)
def test_text_with_strange_content_is_read(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    assert outcome(tmp_path / "a.parquet") == content
    assert not look(tmp_path / "a.parquet")


@pytest.mark.parametrize("place", [399_998, 200_000])
@pytest.mark.parametrize(("byte", "kind"), [(b"\xe9", "in another encoding"), (b"\0", "binary")])
def test_text_is_read_to_its_end(tmp_path, place, byte, kind):
    content = bytearray("ä".encode() * 200_000)
    content[place:place] = byte
    (tmp_path / "a").write_bytes(content)
    offset = content.index(byte)
    assert f"a is {kind} from byte {offset:,} on, not" in str(outcome(tmp_path / "a"))
    assert bool(look(tmp_path / "a")) is (place > 200_000)  # which is quick, and reads no middle


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_part_that_is_damaged_is_not_left_out(tmp_path, compress):
    """Python's modules end the text there, as if that were no part of it."""
    first, second = (
        compress(random.Random(seed).randbytes(20_000).hex().encode()) for seed in (0, 1)
    )
    (tmp_path / "a").write_bytes(first + b"?" + second[1:])
    assert "a is compressed and damaged: nothing can be read from" in str(outcome(tmp_path / "a"))


def test_byte_order_marks_and_compression_change_no_token(prepare, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_SIZE", 100)
    plain = prepare()
    stored = tmp_path / "stored"
    stored.mkdir()
    for number, path in enumerate(sorted(corpus.iterdir())):
        text = path.read_bytes()
        marked = BOM * (number % 3) + text
        forms = (
            marked,
            gzip.compress(marked[:99], mtime=0) + gzip.compress(marked[99:], mtime=0),
            bz2.compress(marked),
            lzma.compress(marked),
            zstd.compress(marked[:99]) + zstd.compress(marked[99:]),
        )
        (stored / path.name).write_bytes(forms[number % 5])
    record = prepare([stored], store=tmp_path / "other")
    assert record.sha256 == plain.sha256
    assert (train_tokens(record) == train_tokens(plain)).all()
    assert load(record).validation.tobytes() == load(plain).validation.tobytes()


def test_raw_bytes_of_any_file_are_learned_if_asked_for(prepare, tmp_path):
    contents = [bytes(range(256)) * 9, BOM + b"text", gzip.compress(b"text", mtime=0)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.png is binary.* `tokenizer: raw` learns"):
        prepare([f"{tmp_path}/*.png"], 100)
    record = prepare([f"{tmp_path}/*.png"], 100, tokenizer="raw")
    assert (record.tokenizer, record.dtype, record.vocabulary) == ("raw", "uint8", 256)
    learned = train_tokens(record).tobytes() + load(record).validation.tobytes()
    assert sorted(learned) == sorted(b"".join(contents))
