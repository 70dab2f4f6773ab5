"""Which jobs of a killed run are waited for, by a queue that answers from a table."""

import math
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jaxway.slurm import earlier_run
from jaxway.slurm.earlier_run import EarlierRun
from jaxway.slurm.journal import RUN_ID, Journal
from jaxway.slurm.queue import SlurmJob
from submissions import make_submission

OUTPUT = make_submission().outputs[0]
JOB: Any = SimpleNamespace(output=[OUTPUT])
IDS = {"a": "12", "b": "13"}
NONE: tuple[None, str, list[str]] = (None, "", [])  # nothing is taken over, nothing is waited for


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """A folder whose job does the same as the one in the journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(earlier_run, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(earlier_run, "work_of", lambda job: make_submission().work)
    return Journal()


def found(
    journal: Journal, *states: str, needed: str = OUTPUT, latency_wait: float = 0
) -> EarlierRun:
    """The earlier run, whose jobs, a and b, have these states in turn; in none of them, Slurm does
    not know them."""
    answers = [*states]

    def find_jobs(names: Iterable[str]) -> dict[str, SlurmJob]:
        state = answers.pop(0) if answers else ""
        return {x: SlurmJob(IDS[x], x, state) for x in names} if state else {}

    queue: Any = SimpleNamespace(find_jobs=find_jobs)
    earlier = EarlierRun(journal, queue, threading.Event(), latency_wait)
    earlier.find([needed])
    return earlier


def end(journal: Journal) -> str:
    return journal.read()["a"].end


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING"])
def test_job_that_has_not_ended_is_taken_over_once(journal: Journal, state: str) -> None:
    journal.begin(make_submission("a"))  # its id was not recorded
    earlier = found(journal, state, state)
    assert earlier.take_over(JOB) == (make_submission("a", id="12", run=RUN_ID), state, [])
    assert earlier.take_over(JOB) == NONE
    assert journal.read()["a"].id == "12"


def test_full_disk_keeps_no_job_from_being_taken_over(journal: Journal, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    journal.begin(make_submission("a"))
    monkeypatch.setattr(Journal, "_append", full)
    assert found(journal, "RUNNING", "RUNNING").take_over(JOB)[0]


def test_job_that_has_succeeded_is_taken_over_with_its_outputs_alone(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    assert found(journal, "COMPLETED").take_over(JOB) == NONE
    assert end(journal) == "COMPLETED"
    journal.begin(make_submission("a"))
    Path(OUTPUT).parent.mkdir(parents=True)
    Path(OUTPUT).touch()
    assert found(journal, "COMPLETED").take_over(JOB)[0]


def test_outputs_that_the_file_system_shows_late_are_waited_for(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    earlier = found(journal, "COMPLETED", latency_wait=60)
    Path(OUTPUT).parent.mkdir(parents=True)
    timer = threading.Timer(0.1, Path(OUTPUT).touch)
    timer.start()
    assert earlier.take_over(JOB)[0]
    timer.join()


@pytest.mark.parametrize("states", [["FAILED"], ["RUNNING", "FAILED"]])
def test_job_that_failed_is_submitted_again(journal: Journal, states: list[str]) -> None:
    """Also one that fails while its turn has not come."""
    journal.begin(make_submission("a"))
    assert found(journal, *states).take_over(JOB) == NONE
    assert end(journal) == "FAILED"


def test_job_that_slurm_has_lost_is_submitted_again(journal: Journal, monkeypatch) -> None:
    monkeypatch.setattr(earlier_run, "LOST_AFTER_S", 0.05)
    journal.begin(make_submission("a"))
    assert found(journal, "RUNNING").take_over(JOB) == NONE
    assert end(journal) == "LOST"


def test_job_that_is_missed_for_a_moment_is_not_lost(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    assert found(journal, "RUNNING", "", "", "RUNNING").take_over(JOB)[0]


@pytest.mark.parametrize(("job", "why"), [("", "NOT SUBMITTED"), ("12", "LOST")])
def test_job_that_slurm_does_not_know_is_submitted(journal: Journal, job: str, why: str) -> None:
    journal.begin(make_submission("a", id=job))
    assert found(journal).take_over(JOB) == NONE
    assert end(journal) == why


@pytest.mark.parametrize(
    ("written", "values", "done"),
    [
        (101, {}, True),
        (99, {}, False),  # by an earlier job
        (101, {"begun": math.inf}, False),
        (101, {"work": "other"}, False),
        (101, {"id": ""}, False),  # Slurm never knew it
        (None, {}, False),
    ],
)
def test_job_that_slurm_has_forgotten_is_done_if_its_outputs_are_newer(
    journal: Journal, written: int | None, values: dict[str, Any], done: bool
) -> None:
    Path(OUTPUT).parent.mkdir(parents=True)
    if written:
        Path(OUTPUT).touch()
        os.utime(OUTPUT, (written, written))
    journal.begin(make_submission("a", **{"id": "12", "begun": 100} | values))
    earlier, state, _ = found(journal).take_over(JOB)
    assert (bool(earlier), state) == ((True, "COMPLETED") if done else (False, ""))
    assert end(journal) == ("" if done else "LOST" if values.get("id", "12") else "NOT SUBMITTED")


def test_job_with_other_settings_ends_before_the_new_one_begins(journal: Journal, capsys) -> None:
    journal.begin(make_submission("a", work="other"))
    assert found(journal, "RUNNING", "RUNNING").take_over(JOB) == (None, "", ["12"])
    assert end(journal) == ""  # another run may need to know of it
    assert "not ended: the new one begins after it (`scancel 12`" in capsys.readouterr().err


def test_job_after_which_another_one_writes_is_not_taken_over(journal: Journal) -> None:
    for name, work in (("a", make_submission().work), ("b", "other")):
        journal.begin(make_submission(name, work=work))
    assert found(journal, *["RUNNING"] * 3).take_over(JOB) == (None, "", ["13", "12"])


def test_job_that_waits_for_another_one_is_taken_over(journal: Journal) -> None:
    for name, work in (("a", "other"), ("b", make_submission().work)):
        journal.begin(make_submission(name, work=work))
    assert found(journal, *["PENDING"] * 2).take_over(JOB)[0] == make_submission(
        "b", id="13", run=RUN_ID
    )


def test_cancelled_job_is_cancelled_again_and_ends_before_the_new_one_begins(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []  # the run that was to do it may have been killed before
    monkeypatch.setattr(
        earlier_run, "cancel", lambda jobs, queue: cancelled.extend(job.id for job in jobs)
    )
    journal.begin(make_submission("a", cancelled=True))
    assert found(journal, "RUNNING", "RUNNING").take_over(JOB) == (None, "", ["12"])
    assert cancelled == ["12"]


def test_job_that_is_not_needed_is_named_while_it_runs(journal: Journal, capsys) -> None:
    journal.begin(make_submission("a"))
    found(journal, "RUNNING", needed="another")
    assert "does not need: 12 (train_run small)" in capsys.readouterr().err
    assert end(journal) == ""
    found(journal, "COMPLETED", needed="another")
    assert end(journal) == "COMPLETED"
    assert capsys.readouterr().err == ""
