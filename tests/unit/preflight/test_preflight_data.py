"""Checks of data: whether they are there and enough, and how often they are read."""

import gzip
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_records import data_record
from examples import make_training
from jaxway.config.jobs import DataOptions, TrainJob
from jaxway.preflight import data
from jaxway.preflight.data import check_data, record_of
from jaxway.preflight.finding import Finding, failure, passed, warning
from jaxway_job import dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

TEXT = ("text",)


@pytest.fixture
def text(site, tmp_path: Path) -> Path:
    """A folder with two files of 1,000 bytes, 1,000 of which are validated on."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text("a line of text\n" * 50 + "x" * 250)
    return folder


def check(**jobs: TrainJob) -> list[Finding]:
    return [*check_data({f"train.{name}": job for name, job in jobs.items()})]


def test_trainings_that_share_data_are_one_line(text) -> None:
    found = check(a=make_training(TEXT, context=10), b=make_training(TEXT, context=100))
    # b reads 10 steps x 4 x 100 of the 1000 bytes that validation leaves.
    often = "which the longest training reads 4.00 times"
    assert found == [passed(f"train.a and 1 more: 0.0 MB in 2 files, {often}")]


def test_text_shorter_than_the_longest_context_fails(text) -> None:
    (finding,) = check(a=make_training(TEXT, context=10), b=make_training(TEXT, context=1000))
    assert finding.code == "JW513"
    assert re.fullmatch(
        r"train\.a\.data: [\d,]+ bytes in 2 files are too short for 1,000 bytes of validation and "
        "a context of 1000: lower validation_bytes or add text",
        finding.message,
    )


def test_single_file_is_enough_if_it_is_longer_than_validation(text) -> None:
    (text / "b.txt").unlink()
    (finding,) = check(a=make_training(TEXT, context=10))
    assert finding.code == "JW513"
    assert " bytes in 1 files are too short" in finding.message
    (text / "c.txt").write_text("long " * 1000)
    (text / "a.txt").unlink()
    data.found_files.cache_clear()
    (finding,) = check(a=make_training(TEXT, context=10))
    assert not finding.code


@pytest.mark.parametrize("times", [0.01, 0.5, 1, 3])
def test_what_is_said_of_reading_is_what_a_training_reads(text, times) -> None:
    """Counted over the windows of train.py."""
    size, context, batch = 20_000, 20, 4
    steps = round(times * size / context / batch)
    record = data_record(shards=(size,), train_tokens=size)
    read = np.zeros(size, int)
    for step in range(1, steps + 1):
        tokens = dataset.Data(record, [], np.empty(0))
        for offset in dataset.window_offsets(tokens, 0, step, batch, context):
            read[offset : offset + context] += 1
    said = data.reads(data.Demand(context, steps * batch * context), size)
    assert said == f"which the longest training reads {read.mean():,.2f} times"
    assert np.mean((math.floor(times) <= read) & (read <= math.ceil(times))) > 0.99


def test_files_that_are_no_text_are_refused_by_name(text) -> None:
    (text / "b.txt").write_bytes(b"ORC\0\x15\x04\x15\x10")
    (text / "c.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    (finding,) = check(a=make_training(TEXT, context=10))
    assert finding.code == "JW183"
    assert finding.message.startswith("train.a.data: text/b.txt is ORC, not plain text in")
    assert finding.message.endswith("any file; files that are not read: 2")
    (finding,) = check(a=make_training(TEXT, tokenizer="raw", context=10))
    assert not finding.code


def test_tables_without_the_column_are_refused_by_name(text) -> None:
    (text / "b.txt").write_text('{"id": 1, "body": "text"}\n')
    (finding,) = check(a=make_training(TEXT, context=10))
    assert (finding.code, finding.message) == (
        "JW187",
        "train.a.data: text/b.txt is JSON lines without 'text', but with id, body: set text_column",
    )
    job = make_training(TEXT, context=10)
    assert job.data
    (finding,) = check(a=replace(job, data=replace(job.data, text_column="body")))
    said = "train.a: 0.0 MB in 2 files, some of them compressed or tables"
    assert finding == passed(said)


@pytest.mark.parametrize("size", [2000, 10, 1001])
def test_shards_of_tokens_are_counted(text, tmp_path, size) -> None:
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    (text / "a.bin").write_bytes(bytes(size))
    (text / "val.bin").write_bytes(bytes(400))
    job = make_training(("text/a.bin",), tokenizer=str(file), context=10)
    assert job.data
    data = replace(job.data, token_shards="uint16", validation=("text/val.bin",))
    (finding,) = check(a=replace(job, data=data))
    reads = "which the longest training reads 0.40 times"
    assert (
        finding
        == {
            2000: passed(f"train.a: 0.0 M tokens, {reads}"),
            10: failure("JW513", "train.a.data: only 5 tokens in shards"),
            1001: failure(
                "JW188", "train.a.data: text/a.bin is no shard of uint16: it has 1,001 bytes"
            ),
        }[size]
    )


def test_size_of_compressed_text_is_not_judged(text) -> None:
    (text / "a.txt").write_bytes(gzip.compress(b"text " * 1000))
    (text / "b.txt").unlink()
    found = check(a=make_training(TEXT, context=10))
    assert found == [passed("train.a: 0.0 MB in 1 files, some of them compressed or tables")]


def test_links_that_lead_back_are_told(text) -> None:
    (text / "loop").symlink_to(".")
    first, second = check(a=make_training(TEXT, context=10))
    loop = "train.a.data: text/loop leads back to a folder above it: not followed again"
    assert first == warning(loop)
    assert not second.code


def test_links_to_nothing_fail(text) -> None:
    (text / "c.txt").symlink_to("gone")
    message = "train.a.data: cannot read text/c.txt, a link to gone: No such file or directory"
    assert check(a=make_training(TEXT, context=10)) == [failure("JW511", message)]


def test_empty_folder_fails(text, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    found = check(a=make_training(TEXT, context=10), b=make_training(("empty",), context=10))
    assert found[1:] == [failure("JW511", "train.b.data: empty matches no file")]


def test_file_that_this_user_may_not_read_fails(text, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b.txt")
    message = "train.a.data: text/b.txt cannot be read by this user"
    assert check(a=make_training(TEXT, context=10)) == [failure("JW512", message)]


@pytest.mark.parametrize("lower", [False, True])
def test_tokenizer_is_tried_on_text_before_it_is_prepared(text, tmp_path, lower) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (text / "c.txt").write_text("A Line With Ü" * 3000)
    job = make_training(TEXT, tokenizer=str(tmp_path / "tokenizer.json"), context=10)
    size, *more = check(a=job)
    assert size == passed("train.a: 0.0 MB in 3 files")
    lost = (
        "train.a.tokenizer: the tokenizer does not give text back (0.0% of its tokens are unknown)"
    )
    assert [finding.message.partition(":")[0] for finding in more] == ["train.a.tokenizer"] * lower
    assert all(finding.message.startswith(lost) for finding in more)


def test_broken_tokenizer_fails_for_its_trainings_only(text, tmp_path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{")
    broken = make_training(TEXT, tokenizer=str(file), context=10)
    first, second = check(a=broken, b=make_training(TEXT, context=10))
    assert first.code and first.message.startswith("train.a.tokenizer: ")
    assert not second.code


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_broken_record_counts_as_none(site, tmp_path, content) -> None:
    options = DataOptions((("", ("python",)),), "bytes", 1000)
    file = tmp_path / f"results/data/{options.id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert record_of(options) is None


def test_each_source_of_a_mixture_is_read_as_often_as_it_is() -> None:
    record = data_record(shards=(20, 30, 100), sources={"web": 2, "code": 1})
    demand = data.Demand(10, 300, {"code": 1, "web": 3})
    found = data.check_prepared(record, ["train.a"], demand)
    often = "of which the longest training reads web 4.50 times, code 0.75 times"
    assert found == passed(f"train.a: 0.0 M tokens, {often}")


def test_prepared_data_may_leave_too_little_for_a_context() -> None:
    record = data_record(shards=(10,), train_tokens=10)
    found = [data.check_prepared(record, ["train.a"], data.Demand(size, 300)) for size in (9, 10)]
    assert [each.code for each in found] == ["", "JW513"]


def test_prepared_data_need_no_files(site, tmp_path) -> None:
    job = make_training(("gone",), context=10)
    (tmp_path / "train-00000.bin").write_bytes(bytes(50))
    (tmp_path / "validation.bin").write_bytes(bytes(5))
    record = json.dumps(data_record(folder=str(tmp_path)).to_json())
    (tmp_path / "data.json").write_text(record)
    assert job.data
    file = tmp_path / f"results/data/{job.data.id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(record)
    assert check(a=job) == [
        passed("train.a: 0.0 M tokens, which the longest training reads 8.00 times")
    ]
