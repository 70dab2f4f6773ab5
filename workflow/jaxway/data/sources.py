"""Content of the files of ``data``: plain text, rows of tables, or bytes as they are.

A file is read twice, and the same; but the rows of tables, which corpus.py keeps.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jaxway_shared.errors import UserError

from jaxway.data import kinds, tables
from jaxway.data.find import File
from jaxway.files import PROGRESS_INTERVAL_S, log

CHUNK_SIZE = 2**18  # bytes that are read, and at most tokenised, at once


class TextFile(NamedTuple):
    """A document that is a file: sha256 and size, in bytes, of what is learned of it.

    That is a text without compression and byte order mark, or all of a ``raw`` file. ``source`` is
    the number of the source that has it.
    """

    digest: bytes
    source: int
    size: int
    file: File
    raw: bool


class Look(NamedTuple):
    """What a look at a file finds: why it is not read, if so, whether its text is larger than the
    file, and whether it has rows, which wait on disk."""

    error: UserError | None
    compressed: bool = False
    table: bool = False


class ProgressReporter:
    """Logs now and then how many bytes are done."""

    def __init__(self, action: str, total: int) -> None:
        self.action, self.total = action, total
        self.done, self.last_report = 0, time.monotonic()

    def add(self, size: int) -> None:
        self.done += size
        if self.total and time.monotonic() - self.last_report > PROGRESS_INTERVAL_S:
            self.last_report = time.monotonic()
            log(f"{self.action}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


NO_PROGRESS = ProgressReporter("", 0)


def unreadable(path: Path, error: Exception) -> UserError:
    """What reading a file has raised, in a sentence."""
    if reason := getattr(error, "strerror", None):
        return UserError("JW180", f"data: cannot read {path}: {reason}")
    return UserError("JW183", f"data: {path} is compressed and damaged: {error}")


def refused(path: Path, kind: str) -> UserError:
    """That a file is of a kind that is not read."""
    return UserError(
        "JW183",
        f"data: {path} is {kind}, not plain text in UTF-8: convert it or leave it out; "
        "`tokenizer: raw` learns the bytes of any file",
    )


def read(path: Path, raw: bool, progress: ProgressReporter) -> Iterator[bytes]:
    """What is to be learned of a file, in chunks of CHUNK_SIZE."""
    try:
        with path.open("rb") as file:
            text = file if raw else kinds.open_text(file)
            position = 0
            while chunk := text.read(CHUNK_SIZE):
                progress.add(file.tell() - position)
                position = file.tell()
                yield chunk
            check_end(file, text)
    except (OSError, *kinds.DAMAGED) as error:
        raise unreadable(path, error) from None


def check_end(file: BinaryIO, content: BinaryIO) -> None:
    """Raise where a compressed file has more: bz2 and lzma end where the next part is damaged."""
    if content is file:
        return
    while content.read(CHUNK_SIZE):
        pass
    position = file.tell()
    if file.read(1):
        raise EOFError(f"nothing can be read from about byte {position:,} on")


def read_table(path: Path, kind: str, column: str, progress: ProgressReporter) -> Iterator[bytes]:
    """Texts of a table's rows, but for those that are null."""
    missing, position = 0, 0
    try:
        with path.open("rb") as file:
            content = kinds.open_text(file)
            for text in tables.read_texts(kind, content, column):
                progress.add(max(0, file.tell() - position))
                position = max(position, file.tell())
                if text is None:
                    missing += 1
                else:
                    yield text
            check_end(file, content)
    except tables.TableError as error:
        raise UserError("JW187", f"data: {path} is {kind} {error}") from None
    except (OSError, *kinds.DAMAGED) as error:
        raise unreadable(path, error) from None
    if missing:
        log(f"data: {path}: {missing:,} rows have null as {column}: left out")


def scan(file: File, source: int, raw: bool, progress: ProgressReporter) -> TextFile | str:
    """Read all of a text; of a table only find the kind. Raises where a file is neither."""
    digest, size, check = hashlib.sha256(), 0, kinds.TextCheck()
    for chunk in read(file.path, raw, progress):
        if not raw and (kind := check.find_problem(chunk)):
            if kind in tables.READERS:
                return kind
            raise refused(file.path, kind)
        digest.update(chunk)
        size += len(chunk)
    if not raw and (kind := check.find_problem(b"", final=True)):
        raise refused(file.path, kind)
    return TextFile(digest.digest(), source, size, file, raw)


def look(file: File, column: str) -> Look:
    """What a file is by its first and last bytes, or by a table's first row."""
    try:
        with file.path.open("rb") as stored:
            text = kinds.open_text(stored)
            head = text.read(kinds.HEAD_BYTES)
            whole = len(head) < kinds.HEAD_BYTES
            kind = kinds.TextCheck().find_problem(head, final=whole)
            if not kind and not whole and text is stored:
                position = max(stored.tell(), file.bytes - kinds.HEAD_BYTES)
                stored.seek(position)
                tail = stored.read()
                start = kinds.character_start(tail)
                kind = kinds.TextCheck(position + start).find_problem(tail[start:], final=True)
        if kind in tables.READERS:
            next(read_table(file.path, kind, column, NO_PROGRESS), None)
            # A table of columns nearly always is, inside.
            return Look(None, text is not stored or kind != "JSON lines", table=True)
    except (OSError, *kinds.DAMAGED) as error:
        return Look(unreadable(file.path, error))
    except UserError as error:
        return Look(error)
    return Look(refused(file.path, kind) if kind else None, text is not stored)


def first_text(file: File, column: str) -> bytes:
    """The beginning of a file's text, or of a table's first one."""
    head = next(read(file.path, False, NO_PROGRESS), b"")
    kind = kinds.TextCheck().find_problem(head)
    if kind in tables.READERS:
        return next(read_table(file.path, kind, column, NO_PROGRESS), b"")
    return head


def read_verified(text: TextFile, progress: ProgressReporter) -> Iterator[bytes]:
    """What is to be learned of a file, in chunks; raises at its end if scan() read another."""
    digest = hashlib.sha256()
    for chunk in read(text.file.path, text.raw, progress):
        digest.update(chunk)
        yield chunk
    if digest.digest() != text.digest:
        raise UserError(
            "JW182",
            f"data: {text.file.path} changed while it was read: run the same command again",
        )


def read_at(text: TextFile, offset: int) -> bytes:
    """The next bytes of a text from an offset on, those of a character at least."""
    try:
        with text.file.path.open("rb") as file:
            content = file if text.raw else kinds.open_text(file)
            content.seek(content.tell() + offset)
            return content.read(4)
    except (OSError, *kinds.DAMAGED) as error:
        raise unreadable(text.file.path, error) from None
