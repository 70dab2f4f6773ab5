"""Which jobs of a killed run are waited for, by a queue that answers from a table."""

import threading
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


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """A folder whose job does the same as the one in the journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(earlier_run, "work_of", lambda job: make_submission().work)
    return Journal()


def found(journal: Journal, *states: str, needed: str = OUTPUT) -> EarlierRun:
    """The earlier run, whose one job has these states in turn; without, Slurm does not know it."""
    answers = [{"a": SlurmJob("12", "a", state)} for state in states] or [{}]
    queue: Any = SimpleNamespace(find_jobs=lambda names: answers.pop(0))
    earlier = EarlierRun(journal, queue, threading.Event())
    earlier.find([needed])
    return earlier


def end(journal: Journal) -> str:
    return journal.read()["a"].end


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING"])
def test_job_that_has_not_ended_is_taken_over_once(journal: Journal, state: str) -> None:
    journal.begin(make_submission("a"))  # its id was not recorded
    earlier = found(journal, state)
    assert earlier.take_over(JOB) == make_submission("a", id="12", run=RUN_ID)
    assert earlier.take_over(JOB) is None
    assert journal.read()["a"].id == "12"


def test_job_that_succeeded_is_taken_over_with_its_outputs_alone(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    assert found(journal, "COMPLETED").take_over(JOB) is None
    assert end(journal) == "COMPLETED"
    journal.begin(make_submission("a"))
    Path(OUTPUT).parent.mkdir(parents=True)
    Path(OUTPUT).touch()
    assert found(journal, "COMPLETED").take_over(JOB)


def test_job_that_failed_is_submitted_again(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    assert found(journal, "FAILED").take_over(JOB) is None
    assert end(journal) == "FAILED"


def test_job_that_was_never_submitted_is_submitted(journal: Journal) -> None:
    journal.begin(make_submission("a"))
    assert found(journal).take_over(JOB) is None
    assert end(journal) == "NOT SUBMITTED"


def test_job_with_other_settings_is_waited_for(journal: Journal, capsys) -> None:
    journal.begin(make_submission("a", work="other"))
    assert found(journal, "RUNNING", "RUNNING", "COMPLETED").take_over(JOB) is None
    assert end(journal) == "COMPLETED"
    assert (
        "with other settings has not ended: waiting for it (`scancel 12`" in capsys.readouterr().err
    )


def test_cancelled_job_is_cancelled_again_and_submitted_when_it_has_ended(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []  # the run that was to do it may have been killed before
    monkeypatch.setattr(
        earlier_run, "cancel", lambda jobs, queue: cancelled.extend(job.id for job in jobs)
    )
    journal.begin(make_submission("a", cancelled=True))
    assert found(journal, "RUNNING", "CANCELLED").take_over(JOB) is None
    assert cancelled == ["12"]
    assert end(journal) == "CANCELLED"


def test_job_that_is_not_needed_is_named_while_it_runs(journal: Journal, capsys) -> None:
    journal.begin(make_submission("a"))
    found(journal, "RUNNING", needed="another")
    assert "does not need: 12 (train_run small)" in capsys.readouterr().err
    assert end(journal) == ""
    found(journal, "COMPLETED", needed="another")
    assert end(journal) == "COMPLETED"
    assert capsys.readouterr().err == ""
