"""Documents of all sources in the order of the sha256 of their text, equal ones once.

This order is as good as random and the same on every machine. A file of text is a document, and so
is each row of a table. Files are read where their turn comes. Rows wait for theirs on disk, in
nameless files, which vanish with the process.
"""

import hashlib
import heapq
import itertools
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from jaxway_shared.errors import UserError

from jaxway.data import kinds, sources
from jaxway.data.find import find_files
from jaxway.data.sources import ProgressReporter, TextFile
from jaxway.files import log


class Row(NamedTuple):
    """A document that is a row of a table, as TextFile is one that is a file."""

    digest: bytes
    source: int
    size: int
    text: bytes


class Entry(NamedTuple):
    """A document without its text."""

    digest: bytes
    source: int
    size: int


Document = TextFile | Row


class RowStore:
    """Rows, which are read in the order of their digests.

    The first bits of its digest pick the file of a row. One file after the other, and the rows of
    each sorted, are all rows in order; in memory is the index of one file.
    """

    FILES = 128
    ENTRY = struct.Struct("<32sHQ")  # of an index: digest, source, size

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0
        self.texts, self.indexes = list[IO[bytes]](), list[IO[bytes]]()

    def add(self, source: int, text: bytes) -> None:
        if not self.texts:
            self.folder.mkdir(parents=True, exist_ok=True)
            for files in (self.texts, self.indexes):
                for _ in range(self.FILES):
                    files.append(tempfile.TemporaryFile(dir=self.folder))  # noqa: SIM115
        digest = hashlib.sha256(text).digest()
        number = digest[0] * self.FILES // 256
        self.texts[number].write(text)
        self.indexes[number].write(self.ENTRY.pack(digest, source, len(text)))
        self.bytes += len(text)

    def index(self, number: int) -> list[tuple[bytes, int, int, int]]:
        """Digest, source, size and place of each row in a file, in order."""
        found, place = [], 0
        self.indexes[number].seek(0)
        for digest, source, size in self.ENTRY.iter_unpack(self.indexes[number].read()):
            found.append((digest, source, size, place))
            place += size
        return sorted(found)

    def entries(self) -> Iterator[Entry]:
        """All rows in order, without their texts."""
        for number in range(len(self.indexes)):
            yield from (Entry(*row[:3]) for row in self.index(number))

    def documents(self) -> Iterator[Row]:
        """All rows in order."""
        for number, file in enumerate(self.texts):
            for digest, source, size, place in self.index(number):
                file.seek(place)
                yield Row(digest, source, size, file.read(size))

    def close(self) -> None:
        for file in (*self.texts, *self.indexes):
            file.close()


class Corpus:
    """Documents of sources. To be closed, since rows of tables are in files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.texts, self.rows = list[TextFile](), RowStore(folder)

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *exception: object) -> None:
        self.rows.close()

    def read(self, entries: Sequence[Sequence[str]], raw: bool, column: str) -> None:
        """Read all files that the entries of sources name. Raises where one is no text."""
        found = [find_files(each) for each in entries]
        for problem in (problem for each in found for problem in each.problems):
            raise UserError("JW180", f"data: {problem}")
        for loop in (loop for each in found for loop in each.loops):
            log(f"data: {loop}: not followed again")
        files = [(number, file) for number, each in enumerate(found) for file in each.files]
        progress = ProgressReporter("reading", sum(file.bytes for _, file in files))
        for number, file in files:
            text = sources.scan(file, number, raw, progress)
            if isinstance(text, TextFile):
                self.texts.append(text)
            else:
                for row in sources.read_table(file.path, text, column, progress):
                    self.rows.add(number, row)
        self.texts.sort()

    @property
    def stored_bytes(self) -> int:
        """Bytes that are read to have all texts."""
        return sum(text.file.bytes for text in self.texts) + self.rows.bytes

    def entries(self) -> Iterator[Entry]:
        """All documents in order, without their texts."""
        yield from in_order((Entry(*text[:3]) for text in self.texts), self.rows.entries())

    def documents(self) -> Iterator[Document]:
        """All documents in order."""
        texts: Iterable[Document] = self.texts
        yield from in_order(texts, self.rows.documents())


Ordered = TypeVar("Ordered", Entry, Document)


def in_order(*documents: Iterable[Ordered]) -> Iterator[Ordered]:
    """Those of several orders in one; of equal ones, by their digest, the first."""
    merged = heapq.merge(*documents, key=itemgetter(0, 1))
    for _, equal in itertools.groupby(merged, key=itemgetter(0)):
        yield next(equal)


def read_document(document: Document, progress: ProgressReporter) -> Iterator[bytes]:
    """What is to be learned of a document, in chunks of CHUNK_SIZE."""
    if isinstance(document, TextFile):
        yield from sources.read_verified(document, progress)
        return
    for start in range(0, document.size, sources.CHUNK_SIZE):
        chunk = document.text[start : start + sources.CHUNK_SIZE]
        progress.add(len(chunk))
        yield chunk


def cut_offset(document: Document, offset: int) -> int:
    """Where the next character of a document begins, from an offset on, in bytes."""
    if isinstance(document, Row):
        return offset + kinds.character_start(document.text[offset:])
    return offset + kinds.character_start(sources.read_at(document, offset))
