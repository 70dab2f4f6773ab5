"""Texts in the rows of tables: JSON lines, Parquet, and Arrow's files and streams.

A table may be of any size: not much more of it is in memory than BATCH_BYTES, but for a batch of
Arrow that is compressed. pyarrow takes long to import, so it waits for a table that needs it.
"""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

BATCH_BYTES, BATCH_ROWS = 2**22, 2**10  # of texts that are read at once

Text = bytes | None  # None: the row has null in its place


class TableError(Exception):
    """Why a table cannot be read, in a few words."""


def read_texts(kind: str, content: BinaryIO, column: str) -> Iterator[Text]:
    """Text of each row of a table, which is open at its beginning."""
    try:
        yield from READERS[kind](content, column)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:  # pyarrow's are these
        raise TableError(f"damaged: {first_line(error)}") from None
    except OSError as error:
        if error.errno:
            raise
        raise TableError(f"damaged: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def lacks(column: str, known: Iterator[str]) -> TableError:
    names = ", ".join(known)
    return TableError(f"without {column!r}, but with {names or 'nothing'}: set text_column")


def json_texts(content: BinaryIO, column: str) -> Iterator[Text]:
    """Of JSON lines: what each line's object has by a key."""
    for number, line in enumerate(content, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise TableError(f"damaged: line {number:,} is not JSON") from None
        if not isinstance(row, dict):
            raise TableError(f"without objects: line {number:,} is something else")
        if column not in row:
            raise lacks(column, iter(row))
        text = row[column]
        if not isinstance(text, str | None):
            raise TableError(f"without text in {column!r}: in line {number:,} it is something else")
        try:
            yield text if text is None else text.encode()
        except UnicodeEncodeError:
            raise TableError(f"damaged: line {number:,} has half a character") from None


def parquet_texts(content: BinaryIO, column: str) -> Iterator[Text]:
    """Of Parquet, however large its row groups are."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(content, pre_buffer=False, buffer_size=2**20)
    check_column(table.schema_arrow, column)
    groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    size = sum(each.total_uncompressed_size for each in chunks if each.path_in_schema == column)
    rows = BATCH_BYTES * table.metadata.num_rows // max(1, size)
    batch_size = min(max(1, rows), BATCH_ROWS)
    for batch in table.iter_batches(batch_size, columns=[column], use_threads=False):
        yield from texts_of(batch.column(0))


def arrow_texts(content: BinaryIO, column: str) -> Iterator[Text]:
    """Of a stream of Arrow, or of a file, which has one inside. Mapped to memory if it can be."""
    import pyarrow

    mapped = isinstance(content, io.BufferedReader) and pyarrow.memory_map(content.name)
    source = mapped or content
    start = 8 if content.read(6) == b"ARROW1" else 0
    source.seek(start)
    schema = pyarrow.ipc.open_stream(source).schema
    check_column(schema, column)
    source.seek(start)
    only = pyarrow.ipc.IpcReadOptions(included_fields=[schema.get_field_index(column)])
    for batch in pyarrow.ipc.open_stream(source, options=only):
        for first in range(0, batch.num_rows, BATCH_ROWS):
            yield from texts_of(batch.column(0).slice(first, BATCH_ROWS))


def check_column(schema: Any, column: str) -> None:
    """Raise a sentence if a table of Arrow has no column of text of this name."""
    from pyarrow import types

    if schema.names.count(column) != 1:
        raise lacks(column, iter(schema.names))
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = types.is_string, types.is_large_string, types.is_string_view
    if not any(is_kind(kind) for is_kind in (*known, types.is_binary, types.is_large_binary)):
        raise TableError(f"without text in {column!r}: it is {kind}")


def texts_of(array: Any) -> Iterator[Text]:
    """An array of strings as bytes, which are UTF-8."""
    import pyarrow

    array.validate(full=True)
    texts: list[Text] = array.cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist()
    yield from texts


READERS: dict[str, Callable[[BinaryIO, str], Iterator[Text]]] = {
    "JSON lines": json_texts,
    "Parquet": parquet_texts,
    "Arrow": arrow_texts,
}
