"""Slurm's answers, however long they take."""

import threading

import pytest
from jaxway.slurm import outage
from jaxway.slurm.outage import PatientQueue, StoppedError
from jaxway.slurm.queue import QueryError, SlurmJob

JOBS = {"a": SlurmJob("1", "a", "RUNNING")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "RETRY_INTERVAL_S", 0.01)


def test_query_is_repeated_and_the_outage_reported_once(monkeypatch, capsys) -> None:
    failures = [QueryError(f"squeue: {number}") for number in range(5)]

    def find_jobs(names: list[str]) -> dict[str, SlurmJob]:
        if failures:
            raise failures.pop(0)
        return JOBS

    monkeypatch.setattr(outage, "find_jobs", find_jobs)
    assert PatientQueue(threading.Event()).find_jobs(["a"]) == JOBS
    line = "Slurm did not answer (squeue: 0); asking again. Jobs are not affected.\n"
    assert capsys.readouterr().err == line


def test_outage_is_reported_again_after_a_minute(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    queue = PatientQueue(threading.Event())
    for second in range(121):
        now[0] = float(second)
        queue.report_outage(QueryError("down"))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_ctrl_c_ends_the_waiting(monkeypatch) -> None:
    closing = threading.Event()

    def find_jobs(names: list[str]) -> dict[str, SlurmJob]:
        closing.set()
        raise QueryError("down")

    monkeypatch.setattr(outage, "find_jobs", find_jobs)
    with pytest.raises(StoppedError):
        PatientQueue(closing).find_jobs(["a"])
