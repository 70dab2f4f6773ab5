"""What a file holds, by its bytes: plain text in UTF-8, also compressed, or what else it is.

Names are not looked at. Encodings that look like ASCII (UTF-7, HZ) cannot be told from it.
"""

import bz2
import codecs
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEAD_BYTES = 2**16  # by which content is recognised
# Characters that no text needs; \x1a and \x1b end files of DOS and colour terminals.
CONTROL = bytes({*range(32), 127} - {*b"\a\b\t\n\v\f\r\x1a\x1b"})
ISO_2022 = rb"\x1b\$[@AB()]"  # what begins a text of East Asia in bytes of ASCII
MAX_CONTROL_SHARE = 0.01  # random bytes have 10 %; crawled text has one now and then
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError)  # and an OSError without a number
ZSTD = rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"  # a frame, or one to skip

OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    rb"\x1f\x8b": gzip.open,
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": bz2.open,
    rb"\xfd7zXZ\0": lzma.open,
    ZSTD: zstd.open,
}
# What content is that is no text, by how it begins; the first match counts.
BINARIES = {
    ZSTD: "compressed with zstd",
    rb"\x1f\x8b": "compressed with gzip",
    rb"BZh[1-9]": "compressed with bzip2",
    rb"\xfd7zXZ": "compressed with xz",
    rb"\x1f[\x9d\xa0]|LZIP|\x5d\0\0|\x04\x22\x4d\x18|\xff\x06\0\0sNaPpY": "compressed",
    rb"PAR[1E]": "Parquet",
    rb"ARROW1|\xff{4}..\0\0": "Arrow",
    rb"FEA1": "Feather of version 1",
    rb"ORC": "ORC",
    rb"Obj\x01": "Avro",
    rb"PK[\x01-\x08]": "a zip archive or a format made of one",
    rb".{257}ustar": "a tar archive",
    rb"7z\xbc\xaf|Rar!|MSCF|\xed\xab\xee\xdb|\x71\xc7": "an archive",
    rb"\x89HDF|CDF[\x01\x02\x05]": "HDF5 or NetCDF",
    rb"\x93NUMPY": "an array of NumPy",
    rb".{3}\0{5}\{\"|GGUF|\x80[\x02-\x05]": "weights of a model or a pickle",
    rb"SQLite format 3": "a database",
    rb"\xd0\xcf\x11\xe0": "a document of Office",
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|P[4-6]\s": "an image",
    rb"RIFF.{4}WEBP|\0\0[\1\2]\0": "an image",
    rb"RIFF|ID3|OggS|fLaC|\xff[\xf2-\xfb]|.{4}ftyp|\x1aE\xdf\xa3": "sound or video",
    rb"\x7fELF|MZ|\xca\xfe\xba\xbe|[\xce\xcf]\xfa\xed\xfe|\0asm|..\r\n[\0-\3]\0{3}": "a program",
    rb"\xff\xfe\0\0|\0\0\xfe\xff": "text in UTF-32",
    rb"\xff\xfe|\xfe\xff": "text in UTF-16",
}
# What content is that is no plain text, though its bytes may be those of one.
TEXTUAL = {
    rb"%PDF-": "PDF",
    rb"%!PS": "PostScript",
    rb"\{\\rtf": "RTF",
    rb"!<arch>\n": "an archive",
    rb"0707(01|02|07)[0-9A-Fa-f]{8}": "a cpio archive",
    rb"WARC/\d": "a WARC archive",
    rb"version https://git-lfs\.github\.com/": "a pointer of Git LFS, without its file",
    rb"/annex/objects/": "a pointer of git-annex, without its file",
    rb"\s*\[\s*(\{\s*)?\"": "JSON",
}


def open_text(file: BinaryIO) -> BinaryIO:
    """Content of an open file, decompressed if that can be done, and after a byte order mark."""
    head = file.read(16)
    file.seek(0)
    openers = [opener for magic, opener in OPENERS.items() if re.match(magic, head)]
    text: BinaryIO = openers[0](file) if openers else file
    start = 0
    while text.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
        start += len(codecs.BOM_UTF8)
    text.seek(start)
    return text


class TextCheck:
    """Finds out whether chunks, one after the other from ``position`` on, are plain text."""

    def __init__(self, position: int = 0) -> None:
        self.position = position  # in bytes of the text
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def find_problem(self, chunk: bytes, final: bool = False) -> str | None:
        """What the content is instead, in a few words."""
        if not self.position and (kind := kind_of(chunk[:HEAD_BYTES])):
            return kind
        pending = len(self.decoder.getstate()[0])
        try:
            self.decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            return f"in another encoding from byte {self.position - pending + error.start:,} on"
        if b"\0" in chunk:
            return f"binary from byte {self.position + chunk.index(0):,} on"
        self.position += len(chunk)
        return None


def character_start(content: bytes) -> int:
    """Where the first character of UTF-8 begins in bytes that may start amid one."""
    first = content[:4]  # no character is longer
    return next((i for i, byte in enumerate(first) if byte & 0xC0 != 0x80), len(first))


def kind_of(head: bytes) -> str | None:
    """What content is that begins so, in a few words; None for plain text in UTF-8."""
    text = is_text(head)
    for magic, kind in (TEXTUAL if text else TEXTUAL | BINARIES).items():
        if re.match(magic, head, re.DOTALL):
            return kind
    if head.isascii() and re.search(ISO_2022, head):
        return "text in ISO 2022"
    if text:
        return "JSON lines" if is_json_lines(head) else None
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        mostly_ascii = zeros.count(0) > 0.3 * len(zeros)
        if mostly_ascii and is_text(head.decode(encoding, "replace").encode()):
            return "text in UTF-16"
    return "text in another encoding" if has_characters_only(head) else "binary"


def is_text(head: bytes) -> bool:
    """Whether bytes can be the beginning of a text in UTF-8; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return has_characters_only(head)


def has_characters_only(content: bytes) -> bool:
    """Whether there is no NUL, and hardly another control character."""
    controls = len(content) - len(content.translate(None, CONTROL))
    return b"\0" not in content and controls <= max(1, MAX_CONTROL_SHARE * len(content))


def is_json_lines(head: bytes) -> bool:
    """Whether the first line is an object, or each is an object or an array.

    So a line that is damaged makes no text of the others. The last line may be cut.
    """
    if not re.match(rb"\s*[{[]", head):
        return False
    first, *others = head.strip().splitlines()
    if not others:
        return bool(re.match(rb'\{\s*"([^"\\]|\\.)*"\s*:', first, re.DOTALL))
    try:
        value = json.loads(first)
        if isinstance(value, dict) and value:
            return True
        values = [value, *(json.loads(line) for line in others[:-1] if line.strip())]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(value, dict | list) for value in values)
