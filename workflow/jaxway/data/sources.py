"""Content of the files of ``data``: plain text, or bytes as they are; read twice, and the same."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxway_shared.errors import UserError

from jaxway.data import kinds
from jaxway.data.find import File, find_files
from jaxway.files import PROGRESS_INTERVAL_S, log

CHUNK_SIZE = 2**18  # bytes that are read, and at most tokenised, at once


class Source(NamedTuple):
    """A file to learn; size, in bytes, and sha256 of what is learned of it.

    That is a text without compression and byte order mark, or all of a ``raw`` file.
    """

    file: File
    raw: bool
    size: int
    digest: bytes


class Look(NamedTuple):
    """What a look at a file finds: why it is not read, if so, and whether it is compressed."""

    error: UserError | None
    compressed: bool


class ProgressReporter:
    """Logs now and then how many bytes of files are done."""

    def __init__(self, action: str, files: Iterable[File]) -> None:
        self.action, self.total = action, sum(file.bytes for file in files)
        self.done, self.last_report = 0, time.monotonic()

    def add(self, size: int) -> None:
        self.done += size
        if time.monotonic() - self.last_report > PROGRESS_INTERVAL_S:
            self.last_report = time.monotonic()
            log(f"{self.action}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


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
            if text is not file and file.read(1):  # bz2 and lzma end where the next part is damaged
                raise EOFError(f"nothing can be read from about byte {position:,} on")
    except (OSError, *kinds.DAMAGED) as error:
        raise unreadable(path, error) from None


def scan_files(entries: Iterable[str], raw: bool) -> list[Source]:
    """Files that ``data`` names, of those with equal text one, in the order of their sha256."""
    found = find_files(entries)
    for problem in found.problems:
        raise UserError("JW180", f"data: {problem}")
    for loop in found.loops:
        log(f"data: {loop}: not followed again")
    progress = ProgressReporter("reading", found.files)
    sources = [scan(file, raw, progress) for file in found.files]
    by_digest = {source.digest: source for source in sources}
    return [by_digest[digest] for digest in sorted(by_digest)]


def scan(file: File, raw: bool, progress: ProgressReporter) -> Source:
    """Read all of a file. Raises where it is no text."""
    digest, size, check = hashlib.sha256(), 0, kinds.TextCheck()
    for chunk in read(file.path, raw, progress):
        if not raw and (kind := check.find_problem(chunk)):
            raise refused(file.path, kind)
        digest.update(chunk)
        size += len(chunk)
    if not raw and (kind := check.find_problem(b"", final=True)):
        raise refused(file.path, kind)
    return Source(file, raw, size, digest.digest())


def look(file: File) -> Look:
    """What a file is by its first and last bytes."""
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
    except (OSError, *kinds.DAMAGED) as error:
        return Look(unreadable(file.path, error), False)
    return Look(refused(file.path, kind) if kind else None, text is not stored)


def read_verified(source: Source, progress: ProgressReporter) -> Iterator[bytes]:
    """What is to be learned of a file, in chunks; raises at its end if scan() read another."""
    digest = hashlib.sha256()
    for chunk in read(source.file.path, source.raw, progress):
        digest.update(chunk)
        yield chunk
    if digest.digest() != source.digest:
        raise UserError(
            "JW182",
            f"data: {source.file.path} changed while it was read: run the same command again",
        )


def cut_offset(source: Source, offset: int) -> int:
    """Where the next character of a source begins, from an offset on, in bytes."""
    try:
        with source.file.path.open("rb") as file:
            text = file if source.raw else kinds.open_text(file)
            text.seek(text.tell() + offset)
            return offset + kinds.character_start(text.read(4))
    except (OSError, *kinds.DAMAGED) as error:
        raise unreadable(source.file.path, error) from None
