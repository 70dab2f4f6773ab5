"""The record of what was submitted, from which a killed run's jobs are found again."""

from pathlib import Path

import pytest
from jaxway.slurm.journal import Journal
from jaxway_shared.errors import UserError
from submissions import make_submission


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new/jobs.jsonl"


def test_journal_of_a_new_folder_is_empty(file: Path) -> None:
    assert Journal(file).read() == {}


def test_submission_is_read_as_it_was_written(file: Path) -> None:
    first, second = make_submission("a"), make_submission("b", number=2, step_before=7)
    journal = Journal(file)
    for each in (first, second):
        journal.begin(each)
    assert journal.update(first, id="12") == make_submission("a", id="12")
    journal.update(second, id="13", cancelled=True)
    assert list(Journal(file).read().values()) == [
        make_submission("a", id="12"),
        make_submission("b", number=2, step_before=7, id="13", cancelled=True),
    ]


def test_submission_is_open_until_its_end_is_recorded(file: Path) -> None:
    journal = Journal(file)
    for name in ("a", "b"):
        journal.begin(make_submission(name))
    journal.update(make_submission("a"), end="COMPLETED")
    assert list(journal.open_submissions()) == ["b"]


def test_every_torn_line_costs_itself_alone(file: Path) -> None:
    journal = Journal(file)
    journal.begin(make_submission("a"))
    journal.begin(make_submission("b"))
    whole = file.read_bytes()
    last = whole.rindex(b"{")
    for length in range(last, len(whole)):
        file.write_bytes(whole[:length])
        journal.begin(make_submission("c"))
        names = list(journal.read())
        assert names == ["a", "c"] or (length == len(whole) - 1 and names == ["a", "b", "c"])


def test_torn_line_between_others_costs_itself_alone(file: Path) -> None:
    journal = Journal(file)
    for name in ("a", "b"):
        journal.begin(make_submission(name))
    for name in ("a", "b"):
        journal.update(make_submission(name), id=name)
    first, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(first[:-9] + b"\x00\xff\n" + rest)
    assert Journal(file).read() == {"b": make_submission("b", id="b")}


def test_other_version_is_refused(file: Path) -> None:
    Journal(file).begin(make_submission())
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(UserError, match="of another version"):
        Journal(file).read()


def test_log_is_named_by_the_id() -> None:
    assert make_submission(id="12").log_file == "slurm/12.log"
