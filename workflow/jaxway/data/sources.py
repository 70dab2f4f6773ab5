"""Files of text: which ones `data` names, and their content, read twice and found the same."""

import glob
import hashlib
import os
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxway_shared.errors import UserError

from jaxway.files import PROGRESS_INTERVAL_S, log

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
CHUNK_SIZE = 2**18  # bytes that are read, and at most tokenised, at once


class Source(NamedTuple):
    """A file to read: its path, size in bytes, and sha256."""

    path: Path
    size: int
    digest: bytes


class ProgressReporter:
    """Logs now and then how many bytes of all are done."""

    def __init__(self, action: str, total: int) -> None:
        self.action, self.total, self.done, self.last_report = action, total, 0, time.monotonic()

    def add(self, size: int) -> None:
        self.done += size
        if time.monotonic() - self.last_report > PROGRESS_INTERVAL_S:
            self.last_report = time.monotonic()
            log(f"{self.action}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


def find_files(entry: str) -> list[Path]:
    """Files that one entry of ``data`` names."""
    if entry == "python":
        files = []
        for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
            below[:] = set(below) - NOT_THE_LIBRARY
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        return files
    if Path(entry).is_dir():
        return [path for path in Path(entry).rglob("*") if path.is_file()]
    return [path for path in map(Path, glob.glob(entry, recursive=True)) if path.is_file()]


def read(path: Path, progress: ProgressReporter) -> Iterator[bytes]:
    """Content of a file, in chunks."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_SIZE):
                progress.add(len(chunk))
                yield chunk
    except OSError as error:
        raise UserError("JW180", f"data: cannot read {path}: {error.strerror}") from None


def scan_files(entries: Iterable[str]) -> list[Source]:
    """Files that ``data`` names, of those with equal content one, in the order of their sha256."""
    paths = []
    for entry in entries:
        found = find_files(entry)
        if not found:
            raise UserError("JW180", f"data: {entry} matches no file")
        paths += found
    progress = ProgressReporter("reading", sum(path.stat().st_size for path in paths))
    files = {}
    for path in paths:
        digest, size = hashlib.sha256(), 0
        for chunk in read(path, progress):
            digest.update(chunk)
            size += len(chunk)
        files[digest.digest()] = Source(path, size, digest.digest())
    return [files[digest] for digest in sorted(files)]


def read_verified(source: Source, progress: ProgressReporter) -> Iterator[bytes]:
    """Content of a file, in chunks; raises at its end if it is not what scan_files() read."""
    digest = hashlib.sha256()
    for chunk in read(source.path, progress):
        digest.update(chunk)
        yield chunk
    if digest.digest() != source.digest:
        raise UserError(
            "JW182", f"data: {source.path} changed while it was read: run the same command again"
        )
