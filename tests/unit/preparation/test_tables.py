"""Rows of JSON lines, Parquet and Arrow are documents, whatever holds them and however packed."""

import bz2
import dataclasses
import io
import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jaxway.data import corpus as corpus_module
from jaxway.data import sources, tables
from jaxway_shared.errors import UserError
from prepared import load, ordered, train_tokens
from random_files import COMPRESSORS

Rows = list[str | None]


def table(rows: Rows) -> pa.Table:
    """Texts beside a column that is not to be read."""
    return pa.table({"id": range(len(rows)), "text": pa.array(rows, pa.string())})


def json_lines(rows: Rows) -> bytes:
    lines = [json.dumps({"id": {"n": n}, "text": text}) for n, text in enumerate(rows)]
    return "\n".join(lines).encode()


def parquet(rows: Rows, compression: str = "snappy") -> bytes:
    file = io.BytesIO()
    pq.write_table(table(rows), file, row_group_size=7, compression=compression)
    return file.getvalue()


def arrow_stream(rows: Rows) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=9)
    return file.getvalue()


def arrow_file(rows: Rows) -> bytes:
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(file, table(rows).schema, options=options) as writer:
        writer.write_table(table(rows))
    return file.getvalue()


FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "JSON lines": json_lines,
    "Parquet": parquet,
    "Parquet, gzip inside": lambda rows: parquet(rows, "gzip"),
    "Arrow stream": arrow_stream,
    "Arrow file": arrow_file,
}


@pytest.fixture(scope="module")
def rows(corpus: Path) -> Rows:
    return [path.read_text() for path in sorted(corpus.iterdir())]


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_are_those_of_the_same_documents_as_text(
    prepare, rows, tokenizer, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(sources, "CHUNK_SIZE", 200)  # long rows are cut as long files are
    monkeypatch.setattr(tables, "BATCH_BYTES", 5000)
    expected = prepare(tokenizer=tokenizer, store=tmp_path / "text")
    tokens, held_out = train_tokens(expected), load(expected).validation
    (tmp_path / "rows").mkdir()
    parts = [rows[:9], rows[5:15], [*rows[15:], *rows[3:5]], []]  # equal ones count once
    packed = {"none": bytes, **COMPRESSORS}
    for number, compress in enumerate(packed.values()):
        for part, content in enumerate(map(FORMATS[name], parts[:3])):
            file = tmp_path / f"rows/{part}"
            file.write_bytes(compress(content) if part or number else content)
        record = prepare([tmp_path / "rows"], store=tmp_path / f"{number}", tokenizer=tokenizer)
        assert dataclasses.replace(record, folder=expected.folder) == expected
        assert (train_tokens(record) == tokens).all()
        assert (load(record).validation == held_out).all()
        assert {path.suffix for path in (tmp_path / f"{number}").iterdir()} == {"", ".lock"}


def test_rows_and_files_are_documents_of_one_order(prepare, corpus, rows, tmp_path):
    expected = prepare()
    (tmp_path / "some").mkdir()
    for path in sorted(corpus.iterdir())[:20]:
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "some/rest.jsonl").write_bytes(json_lines(rows[10:]))
    record = prepare([tmp_path / "some"])
    assert record == expected


def test_rows_come_in_the_order_of_their_sha256(corpus, rows, tmp_path):
    with corpus_module.Corpus(tmp_path) as found:
        (tmp_path / "a").write_bytes(parquet(rows))
        found.read([[f"{tmp_path}/a"]], False, "text")
        texts = [row.text for row in found.documents() if isinstance(row, corpus_module.Row)]
        assert texts == ordered(corpus)
        sizes = [entry.size for entry in found.entries()]
        assert sizes == [len(text) for text in texts]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_null_are_left_out_and_told(prepare, rows, tmp_path, capsys, name):
    expected = prepare()
    (tmp_path / "a").write_bytes(FORMATS[name]([None, *rows, None]))
    assert prepare([tmp_path / "a"], store=tmp_path / "rows").sha256 == expected.sha256
    assert f"{tmp_path}/a: 2 rows have null as text: left out\n" in capsys.readouterr().out


def test_column_has_a_name(prepare, corpus, rows, tmp_path):
    expected = prepare()
    renamed = table(rows).rename_columns({"id": "text", "text": "body"})
    pq.write_table(renamed, tmp_path / "a")
    assert prepare([tmp_path / "a"], **{"text-column": "body"}).sha256 == expected.sha256


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), "string")]
)
def test_strings_of_all_types_are_text(prepare, rows, tmp_path, kind):
    expected = prepare()
    texts = table(rows).column("text").combine_chunks()
    array = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    with pa.ipc.new_stream(tmp_path / "a", pa.schema({"text": kind})) as writer:
        writer.write(pa.record_batch({"text": array}))
    assert prepare([tmp_path / "a"]).sha256 == expected.sha256


def refusal(path: Path) -> str:
    """The sentence that refuses a table, as a look and as reading it have it."""
    file = sources.File(path, path.stat().st_size, 0)
    error = sources.look(file, "text").error
    with (
        corpus_module.Corpus(path.parent) as found,
        pytest.raises(UserError, match=r"^data: ") as caught,
    ):
        found.read([[str(path)]], False, "text")
    assert caught.value.code == "JW187"
    assert not error or str(error) == str(caught.value)
    return str(caught.value).removeprefix(f"data: {path} is ")


def invalid() -> Iterator[tuple[bytes, str]]:
    """Tables, and what is wrong with them."""
    others = table(["a", "b"]).rename_columns(["id", "body"])
    file = io.BytesIO()
    pq.write_table(others, file)
    without = "without 'text', but with id, body: set text_column"
    yield file.getvalue(), f"Parquet {without}"
    with pa.ipc.new_stream(file := io.BytesIO(), others.schema) as writer:
        writer.write_table(others)
    yield file.getvalue(), f"Arrow {without}"
    yield b'{"id": 1, "body": ""}\n', f"JSON lines {without}"
    numbers = pa.table({"text": [1, 2]})
    pq.write_table(numbers, file := io.BytesIO())
    yield file.getvalue(), "Parquet without text in 'text': it is int64"
    yield b'{"text": ["a"]}\n', "JSON lines without text in 'text': in line 1 it is something else"
    yield b'{"text": "a"}\n' * 9999 + b"{", "JSON lines damaged: line 10,000 is not JSON"
    yield b'{"text": "a"}\n{"text": "b\n{"text": "c"}\n', "JSON lines damaged: line 2 is not JSON"
    yield b'{"text": "\\ud800"}\n', "JSON lines damaged: line 1 has half a character"
    yield parquet(["long text " * 99])[:-50], "Parquet damaged: "
    pq.write_table(pa.table({"text": pa.array([b"\xff"], pa.binary())}), file := io.BytesIO())
    yield file.getvalue(), "Parquet damaged: Invalid UTF8 payload"
    text = pa.array([b"\xff"], pa.binary()).view(pa.string())
    with pa.ipc.new_stream(file := io.BytesIO(), pa.schema({"text": pa.string()})) as writer:
        writer.write(pa.record_batch({"text": text}))
    yield file.getvalue(), "Arrow damaged: Invalid"
    yield arrow_stream(["a" * 999])[:-600], "Arrow damaged: "


@pytest.mark.parametrize(
    ("content", "sentence"), [*invalid()], ids=lambda x: x if isinstance(x, str) else ""
)
def test_tables_without_text_are_refused_by_file_kind_and_columns(tmp_path, content, sentence):
    (tmp_path / "a.txt").write_bytes(content)
    found = refusal(tmp_path / "a.txt")
    assert found.startswith(sentence)
    assert "\n" not in found


def test_large_row_group_is_read_by_parts(tmp_path, monkeypatch):
    """Each part is small, so that memory is bounded."""
    pq.write_table(table([f"{number}" * 5000 for number in range(400)]), tmp_path / "a")
    sizes = []

    def texts_of(array):
        sizes.append(array.nbytes)
        return real(array)

    real = tables.texts_of
    monkeypatch.setattr(tables, "texts_of", texts_of)
    monkeypatch.setattr(tables, "BATCH_BYTES", 2**16)
    with (tmp_path / "a").open("rb") as file:
        assert len([*tables.read_texts("Parquet", file, "text")]) == 400
    assert len(sizes) > 50 and max(sizes) < 2**18


@pytest.mark.parametrize("name", ["JSON lines", "Arrow stream"])
@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_table_with_a_damaged_part_is_refused(tmp_path, name, compress):
    draw = random.Random(0)
    first, second = (FORMATS[name]([draw.randbytes(20_000).hex()]) for _ in range(2))
    (tmp_path / "a").write_bytes(compress(first + b"\n") + compress(second)[1:])
    with (
        corpus_module.Corpus(tmp_path) as found,
        pytest.raises(UserError, match="a is compressed and damaged: nothing can be read from"),
    ):
        found.read([[f"{tmp_path}/a"]], False, "text")
