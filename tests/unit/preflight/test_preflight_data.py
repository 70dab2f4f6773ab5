"""Checks of data: whether they are there and enough, and how often they are read."""

import json
import os
from pathlib import Path

import pytest
from example_records import data_record
from examples import make_training
from jaxway.config.jobs import DataOptions, TrainJob
from jaxway.preflight.data import check_data, record_of
from jaxway.preflight.finding import Finding, failure, passed

TEXT = ("text",)


@pytest.fixture
def text(site, tmp_path: Path) -> Path:
    """A folder with two files of 1,000 bytes, 1,000 of which are validated on."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_bytes(bytes(1000))
    return folder


def check(**jobs: TrainJob) -> list[Finding]:
    return [*check_data({f"train.{name}": job for name, job in jobs.items()})]


def test_trainings_that_share_data_are_one_line(text) -> None:
    found = check(a=make_training(TEXT, context=10), b=make_training(TEXT, context=100))
    # b reads 10 steps x 4 x 100 of the 1000 bytes that validation leaves.
    assert found == [passed("train.a and 1 more: 0.0 MB in 2 files, read 4 times at most")]


def test_text_shorter_than_the_longest_context_fails(text) -> None:
    (finding,) = check(a=make_training(TEXT, context=10), b=make_training(TEXT, context=1000))
    assert finding.code == "JW513"
    message = "train.a.data: 0.0 MB in 2 files are too short for 1,000 bytes of validation"
    assert finding.message.startswith(message)


def test_single_file_fails_since_it_is_held_out(text) -> None:
    (text / "b.txt").unlink()
    (text / "a.txt").write_bytes(bytes(9999))
    (finding,) = check(a=make_training(TEXT, context=10))
    assert finding.code == "JW513"
    assert "0.0 MB in 1 files are too short" in finding.message


def test_empty_folder_fails(text, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    found = check(a=make_training(TEXT, context=10), b=make_training(("empty",), context=10))
    assert found[1:] == [failure("JW511", "train.b.data: no file in empty")]


def test_file_that_this_user_may_not_read_fails(text, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b.txt")
    message = "train.a.data: text/b.txt cannot be read by this user"
    assert check(a=make_training(TEXT, context=10)) == [failure("JW512", message)]


def test_broken_tokenizer_fails_for_its_trainings_only(text, tmp_path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{")
    broken = make_training(TEXT, tokenizer=str(file), context=10)
    first, second = check(a=broken, b=make_training(TEXT, context=10))
    assert first.code and first.message.startswith("train.a: tokenizer: ")
    assert not second.code


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_broken_record_counts_as_none(site, tmp_path, content) -> None:
    data = DataOptions(("python",), "bytes", 1000)
    file = tmp_path / f"results/data/{data.id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert record_of(data) is None


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
    assert check(a=job) == [passed("train.a: 0.0 M tokens, read 8 times at most")]
