"""Random files of many kinds, made from a seed, each with what is to be found in it."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
from PIL import Image

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ALPHABETS = {
    "latin": "aeioubcdfgmnrst äöüßéñ",
    "cyrillic": "абвгдежзиклмнопрстуф ",
    "japanese": "日本語の文字をかいてよむ",
    "chinese": "中文字我你他們在有人大 ",
    "korean": "한국어글자가나다라마 ",
}
ENCODINGS = {
    "latin": ("latin-1", "cp1252", "cp437", "cp500", "utf-16", "utf-16-le", "utf-16-be", "utf-32"),
    "cyrillic": ("koi8-r", "cp1251", "iso8859-5", "utf-16-le", "utf-16-be", "utf-32-le"),
    "japanese": ("shift_jis", "euc-jp", "iso2022_jp", "utf-16", "utf-16-be"),
    "chinese": ("gb18030", "big5", "utf-16-le", "utf-16"),
    "korean": ("euc-kr", "iso2022_kr", "johab", "utf-16-be"),
}
IMAGES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
}


class RandomFile(NamedTuple):
    """A file's content, and either the text in it or words of the sentence that refuses it."""

    what: str
    content: bytes
    text: bytes | None
    kind: str = ""


def sentences(draw: random.Random, alphabet: str) -> str:
    """Text with characters of several bytes at both ends."""
    letters = ALPHABETS[alphabet]
    body = "".join(draw.choices(letters + "\n", k=draw.randrange(100, 2000)))
    return letters[-2] + body + letters[-2]


def plain_text(draw: random.Random) -> RandomFile:
    text = sentences(draw, draw.choice(list(ALPHABETS))).encode()
    marked = draw.choice((b"", b"\xef\xbb\xbf")) + text
    return RandomFile("text", marked, text)


def compressed_text(draw: random.Random) -> RandomFile:
    _, content, text, _ = plain_text(draw)
    name = draw.choice(list(COMPRESSORS))
    return RandomFile(f"text, {name}", COMPRESSORS[name](content), text)


def encoded_text(draw: random.Random) -> RandomFile:
    alphabet = draw.choice(list(ALPHABETS))
    encoding = draw.choice(ENCODINGS[alphabet])
    content = sentences(draw, alphabet).encode(encoding, "ignore")
    kind = "UTF-" if encoding.startswith("utf") else "ISO 2022" if "2022" in encoding else ""
    return RandomFile(f"text in {encoding}", content, None, kind and f"text in {kind}")


def json_lines(draw: random.Random) -> RandomFile:
    count = draw.randrange(1, 9)
    rows = [{"text": sentences(draw, "cyrillic"), "meta": {"n": n}} for n in range(count)]
    lines = "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in rows)
    text = "".join(str(row["text"]) for row in rows).encode()
    return RandomFile("JSON lines", lines.encode(), text, "JSON lines")


def archive(draw: random.Random) -> RandomFile:
    text, file = sentences(draw, "latin").encode(), io.BytesIO()
    kind = draw.choice(("a zip archive", "a tar archive", "an archive", "a cpio archive"))
    if kind == "a zip archive":
        method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(file, "w", method) as zipped:
            zipped.writestr("a.txt", text)
    elif kind == "a tar archive":
        with tarfile.open(fileobj=file, mode="w") as tar:
            member = tarfile.TarInfo("a.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    elif kind == "an archive":  # of ar
        file.write(b"!<arch>\n%-48s%-10d`\n" % (b"a.txt/", len(text)) + text)
    else:
        file.write(b"070701" + b"%08X" * 13 % (*range(11), 6, 0) + b"a.txt\0" + text)
    return RandomFile(kind, file.getvalue(), None, kind)


def image(draw: random.Random) -> RandomFile:
    size = draw.randrange(8, 40)
    file, name = io.BytesIO(), draw.choice(IMAGES)
    Image.frombytes("RGB", (size, size), draw.randbytes(3 * size * size)).save(file, name)
    return RandomFile(name, file.getvalue(), None, "an image")


def parquet(draw: random.Random, folder: Path) -> RandomFile:
    path, count = folder / "table", draw.randrange(1, 99)
    codec = draw.choice(("uncompressed", "snappy", "zstd"))
    rows = f"SELECT 'text of row ' || range AS text FROM range({count})"
    duckdb.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION {codec})")
    content = path.read_bytes()
    path.unlink()
    text = "".join(f"text of row {number}" for number in range(count)).encode()
    return RandomFile("Parquet", content, text)


def table(draw: random.Random) -> RandomFile:
    kind = draw.choice(("Arrow", "NumPy", "a database", "a pickle", "a zip archive"))
    numbers = np.frombuffer(draw.randbytes(800), np.uint16)
    file = io.BytesIO()
    if kind == "Arrow":
        file.write(b"ARROW1\0\0\xff\xff\xff\xff" + struct.pack("<i", 400) + draw.randbytes(400))
    elif kind == "NumPy":
        np.save(file, numbers)
    elif kind == "a database":
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE t (text)")
        file.write(connection.serialize())
        connection.close()
    elif kind == "a pickle":
        pickle.dump({"tokens": numbers.tolist()}, file)
    else:
        np.savez(file, numbers)
    return RandomFile(kind, file.getvalue(), None, kind)


def csv(draw: random.Random) -> RandomFile:
    text = "".join(f"{n},{word}\n" for n, word in enumerate(sentences(draw, "korean").split()))
    return RandomFile("a table as text", text.encode(), text.encode())


def binary(draw: random.Random) -> RandomFile:
    kind = draw.choice(("random", "tokens", "floats", "zeros", "a program"))
    count = draw.randrange(100, 999)
    tokens = [draw.randrange(50257) for _ in range(count)]
    content = {
        "random": draw.randbytes(count),
        "tokens": struct.pack(f"<{count}H", *tokens),  # as nanoGPT has them
        "floats": struct.pack(f"<{count}f", *tokens),
        "zeros": bytes(count),
        "a program": Path(sys.executable).read_bytes()[:count],
    }[kind]
    return RandomFile(kind, content, None, kind if kind == "a program" else "")


def packed(draw: random.Random) -> RandomFile:
    """Something other than plain text, compressed."""
    inner = draw.choice((json_lines, archive, image, table, binary, encoded_text))(draw)
    name = draw.choice(list(COMPRESSORS))
    content = COMPRESSORS[name](inner.content)
    return RandomFile(f"{inner.what}, {name}", content, inner.text, inner.kind)


def broken(draw: random.Random) -> RandomFile:
    """What is cut at its end, or a text with a byte that does not belong there."""
    makers = (archive, image, json_lines, table, encoded_text, packed, compressed_text)
    make = draw.choice((plain_text, *makers))
    what, content, _, kind = make(draw)
    if make is plain_text:
        if draw.random() < 0.5:
            return RandomFile("text, cut amid a character", content[:-1], None, "in another encod")
        place, byte = draw.randrange(len(content)), draw.choice((b"\0", b"\xff", b"\xc0"))
        return RandomFile("text with another byte", content[:place] + byte + content[place:], None)
    cut = content[: draw.randrange(24, max(25, len(content) - 8))]
    compressed = make in (packed, compressed_text)
    return RandomFile(f"{what}, cut", cut, None, "" if compressed else kind)


def random_files(seed: int, count: int, folder: Path) -> list[RandomFile]:
    """Random files, of each kind about as many; ``folder`` is for what must be written."""
    draw = random.Random(seed)
    makers = [
        *(plain_text, compressed_text, encoded_text, encoded_text, json_lines, archive, image),
        *(table, csv, binary, packed, broken, broken),
    ]
    files = [draw.choice(makers)(draw) for _ in range(count - 10)]
    return files + [parquet(draw, folder) for _ in range(10)]
