"""What preparation makes of files: validation, shards, record, and data that are refused."""

import ast
import dataclasses
import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxway.data import prepare as prepare_data
from jaxway.data import shards, sources
from jaxway.data.corpus import Corpus
from jaxway.data.find import find_files
from jaxway_shared.errors import UserError
from prepared import load, ordered, train_tokens


def test_options_are_literal():
    """The plan reads them without importing the module, which takes long."""
    literal = next(
        node.value
        for node in ast.parse(Path(prepare_data.__file__).read_text()).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "OPTIONS"
    )
    assert literal
    assert ast.literal_eval(literal) == prepare_data.OPTIONS
    for name, schema in prepare_data.OPTIONS.items():
        assert set(schema) >= {"type", "default", "description"}, name


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("jaxway.data.prepare", {"jax"}),
        ("jaxway_job.dataset", {"jax", "tokenizers", "requests"}),
    ],
)
def test_heavy_modules_are_not_imported(module, foreign):
    line = f"import sys, {module}; print(*{foreign} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_python_means_the_standard_library(prepare):
    record = prepare(["python"], validation_bytes=10_000)
    assert record.documents > 100 and record.train_bytes > 1_000_000
    assert b"def " in load(record).validation.tobytes()
    names = {part for file in find_files(["python"]).files for part in file.path.parts}
    assert not names & {"site-packages", "test"}


def test_bytes_are_kept_and_no_file_is_on_both_sides(prepare, corpus, tmp_path):
    record = prepare()
    contents = ordered(corpus)
    sizes = np.cumsum([len(c) for c in contents])
    held = int(np.searchsorted(sizes, 5000)) + 1
    assert held >= 2 and sizes[held - 1] > 5000
    assert load(record).validation.tobytes() == b"".join(contents)[:5000]
    assert train_tokens(record).tobytes() == b"".join(contents[held:])
    count = int(sizes[-1] - sizes[held - 1])
    folder = tmp_path / "data" / record.sha256[:16]
    text = np.frombuffer(b"".join(contents[held:]), np.uint8)
    assert record == dataclasses.replace(
        record, documents=40, tokenizer="bytes", tokenizer_sha256=None, vocabulary=256,
        dtype="uint8", shards=(count,), train_tokens=count, train_bytes=count,
        validation_tokens=5000, validation_bytes=5000, folder=str(folder),
    )  # fmt: skip
    validation = np.frombuffer(b"".join(contents)[:5000], np.uint8)
    assert record.unigram_bits_per_byte == pytest.approx(
        shards.unigram_bits(np.bincount(text, minlength=256), validation)
    )
    assert 0 < record.gzip_bits_per_byte < record.unigram_bits_per_byte < 8


def files(folder, *texts):
    """Files of these texts, in a folder of their own."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    "sizes", [(300_000,), (40_000, 10_000_000), (10_000_000, 40_000), (21_000,)]
)
def test_of_a_large_file_the_end_is_held_out(prepare, tmp_path, sizes):
    """Whichever comes first, no more is held out than asked for."""
    texts = [f"{n}" + f"{'ö' * 9}\n" * (size // 19) for n, size in enumerate(sizes)]
    record = prepare([files(tmp_path / "text", *texts)], validation_bytes=20_001)
    size = sum(len(text.encode()) for text in texts)
    assert record.documents == len(sizes)
    assert 19_998 <= record.validation_bytes <= 20_001  # between characters
    assert record.train_bytes == size - record.validation_bytes
    learned, held_out = train_tokens(record).tobytes(), load(record).validation.tobytes()
    assert any(text.endswith(held_out.decode()) for text in texts)
    assert np.array_equal(
        np.bincount(np.frombuffer(learned + held_out, np.uint8)),
        np.bincount(np.frombuffer("".join(texts).encode(), np.uint8)),
    )


def test_no_more_is_lost_than_one_file_that_validation_could_hold(prepare, tmp_path):
    texts = [str(number) * size for number, size in enumerate((100, 90, 80, 70, 60, 500, 400))]
    for asked in range(1, 500, 7):
        folder = tmp_path / f"{asked}"
        record = prepare([files(folder, *texts)], asked, store=tmp_path / f"data{asked}")
        lost = 1300 - record.train_bytes - record.validation_bytes
        assert record.validation_bytes == asked and 0 <= lost < min(asked, 500)


def test_of_a_compressed_file_the_end_of_its_text_is_held_out(prepare, tmp_path):
    text = "".join(f"line {number} é\n" for number in range(9000)).encode()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text))
    plain = prepare([tmp_path / "a.txt"], store=tmp_path / "data1")
    packed = prepare([tmp_path / "b"], store=tmp_path / "data2")
    for record in (plain, packed):
        assert load(record).validation.tobytes() == text[-record.validation_bytes :]
        assert train_tokens(record).tobytes() == text[: -record.validation_bytes]
    assert packed.validation_bytes == plain.validation_bytes in (4999, 5000)


def test_paths_and_copies_make_no_difference(prepare, corpus, tmp_path):
    first = prepare()
    (tmp_path / "copies").mkdir()
    files = sorted(corpus.iterdir())
    for number, path in enumerate(files + files[:7]):
        (tmp_path / f"copies/{number:03}").write_bytes(path.read_bytes())
    second = prepare([f"{tmp_path}/copies/*"], store=tmp_path / "other")
    assert dataclasses.replace(second, folder=first.folder) == first
    assert (train_tokens(second) == train_tokens(first)).all()


def test_shards_are_full_but_for_the_last(prepare, monkeypatch):
    whole = train_tokens(prepare())
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    record = prepare()
    last = len(whole) % 1000
    assert record.shards == (1000,) * (len(whole) // 1000) + (last,) * (last > 0)
    np.testing.assert_array_equal(train_tokens(record), whole)
    monkeypatch.setattr(shards, "SHARD_TOKENS", len(whole))  # no empty one after the last
    assert prepare().shards == (len(whole),)


def test_text_to_validate_on_is_not_trained_on(prepare, corpus, tmp_path):
    own = files(tmp_path / "own", "only to validate on " * 50, *(
        (corpus / f"{number}.txt").read_text() for number in (3, 5)
    ))  # fmt: skip
    record = prepare(validation_bytes=10**6, **{"validation": own})
    held_out = ordered(own)
    assert load(record).validation.tobytes() == b"".join(held_out)
    rest = [text for text in ordered(corpus) if text not in held_out]
    assert len(rest) == 38 and train_tokens(record).tobytes() == b"".join(rest)
    few = prepare(validation_bytes=500, **{"validation": own})
    assert load(few).validation.tobytes() == b"".join(held_out)[:500] or few.validation_bytes == 500
    assert few.sha256 != record.sha256


@pytest.mark.parametrize("tokens", ["bytes", "tokenizer"])
def test_documents_end_with_a_token(prepare, corpus, tokenizer, tokens):
    if tokens == "bytes":
        plain, end = prepare(), 7
        options: dict[str, Any] = {"end-of-text": end}
    else:
        plain = prepare(tokenizer=tokenizer)
        options, end = {"end-of-text": "<s>", "tokenizer": tokenizer}, 0
    record = prepare(**options)
    learned = train_tokens(record)
    held = 40 - (learned == end).sum() // (1 if tokens == "bytes" else 2)  # <s> begins one, too
    assert record.end_of_text == end and record.sha256 != plain.sha256
    assert learned[-1] == end
    assert len(learned) == plain.train_tokens + 40 - held
    assert record.special_tokens == plain.special_tokens + held
    assert record.train_bytes == plain.train_bytes
    if tokens == "bytes":
        assert learned.tobytes() == b"".join(text + b"\7" for text in ordered(corpus)[held:])


def test_token_that_ends_documents_anyway_comes_once(prepare, tokenizer):
    options = {"tokenizer": tokenizer, "end-of-text": "</s>"}
    assert prepare(**options).train_tokens == prepare(tokenizer=tokenizer).train_tokens


def test_token_that_is_none_is_refused(prepare, tokenizer):
    with pytest.raises(
        UserError, match="tokenizer: it has no token <eos>; special ones: <s>, </s>"
    ):
        prepare(tokenizer=tokenizer, **{"end-of-text": "<eos>"})


def test_sources_have_shards_of_their_own(prepare, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 9000)
    other = files(tmp_path / "other", "other text " * 900, (corpus / "7.txt").read_text())
    words = ["--source", "web", corpus, "--source", "code", other]
    record = prepare([], words=words)
    expected = ordered(corpus)
    held = len(load(record).validation)
    assert record.sources.keys() == {"web", "code"} and record.documents == 41
    web = np.concatenate(load(record).shards[: record.sources["web"]]).tobytes()
    code = np.concatenate(load(record).shards[record.sources["web"] :]).tobytes()
    assert Path(record.folder, "train-web-00000.bin").stat().st_size == 9000
    # The document that both have is of the first; of a larger one the end may be held out.
    assert len(web + code) + held <= sum(map(len, expected)) + 9900
    assert all(text in web for text in expected[-30:]) and b"other" not in web
    assert set(code.split()) == {b"other", b"text"}
    assert record.shards[0] == 9000 and sum(record.shards) == len(web + code)


def test_source_without_text_to_train_on_is_refused(prepare, corpus, tmp_path):
    words = ["--source", "web", corpus, "--source", "code", corpus]
    with pytest.raises(UserError, match=r"^data\.code: only 0 tokens for training"):
        prepare([], words=words)


@pytest.mark.parametrize(
    ("entries", "needs", "sentence"),
    [
        (["/no/such/folder"], 1, "/no/such/folder matches no file"),
        (["/no/such/*.txt"], 1, r"/no/such/\*.txt matches no file"),
        (["{corpus}"], 10**9, "the 40 different documents leave 0 bytes for training after [1-9]"),
        (
            ["{corpus}/0.txt"],
            10**5,
            "the 1 different documents leave 0 bytes for training after [1-9]",
        ),
    ],
)
def test_too_little_text_is_refused(prepare, corpus, tmp_path, entries, needs, sentence):
    with pytest.raises(UserError, match=f"^data: .*{sentence}"):
        prepare([entry.format(corpus=corpus) for entry in entries], needs)
    assert not any(tmp_path.iterdir())


def test_unreadable_file_is_refused(prepare, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"data: cannot read .*\.txt: Permission denied"):
        prepare()


@pytest.mark.parametrize("other", [b"other", b"\xff"])
def test_file_that_changes_meanwhile_is_refused(
    prepare, corpus, tokenizer, tmp_path, monkeypatch, other
):
    (tmp_path / "changing").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "changing" / path.name).write_bytes(path.read_bytes())

    def then_change(self, *arguments):
        read(self, *arguments)
        self.texts[-1].file.path.write_bytes(other)

    read = Corpus.read
    monkeypatch.setattr(Corpus, "read", then_change)
    with pytest.raises(UserError, match=r"\.txt changed while it was read"):
        prepare([tmp_path / "changing"], tokenizer=tokenizer)
    assert {path.suffix for path in (tmp_path / "data").iterdir()} == {".lock"}


def test_progress_is_reported(prepare, monkeypatch, capsys):
    monkeypatch.setattr(sources, "PROGRESS_INTERVAL_S", -1)
    prepare()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reading: 0 of ") and lines[-2].startswith("writing: ")
    assert len(lines) == 81


def test_baselines():
    text, uniform = np.frombuffer(b"ab" * 5000, np.uint8), np.arange(256, dtype=np.uint8)
    once, counts = np.bincount(uniform), np.bincount(text, minlength=256)
    assert shards.unigram_bits(once, text) == pytest.approx(8)
    assert shards.unigram_bits(counts, text) == pytest.approx(1, abs=0.05)
    assert shards.unigram_bits(counts, np.frombuffer(b"c", np.uint8)) > 13
    assert shards.gzip_bits(text.tobytes()) < 0.1
    assert shards.gzip_bits(uniform.tobytes()) > 8
