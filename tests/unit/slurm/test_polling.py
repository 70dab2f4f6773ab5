"""When the queue is asked again, and which jobs its answers end."""

import pytest
from jaxway.slurm import polling
from jaxway.slurm.polling import Polling
from jaxway.slurm.queue import SlurmJob


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    return clock


def answer(state: str) -> dict[str, SlurmJob]:
    return {"a": SlurmJob("1", "a", state)}


def test_job_ends_in_a_state_that_is_an_end(clock: Clock) -> None:
    polling = Polling()
    assert polling.state("a") == "PENDING"
    for state in ("RUNNING", "COMPLETING", "REQUEUED", "OF_A_LATER_SLURM"):
        assert polling.ends(["a", "b"], answer(state)) == {}
    assert polling.ends(["a", "b"], answer("TIMEOUT")) == {"a": "TIMEOUT"}
    assert polling.state("a") == "TIMEOUT"


def test_job_is_lost_when_slurm_has_not_listed_it_for_a_minute(clock: Clock) -> None:
    polling = Polling()
    polling.ends(["a"], answer("RUNNING"))
    for _ in range(2):
        assert polling.ends(["a"], {}) == {}
        clock.now += 59
        assert polling.ends(["a"], {}) == {}
        polling.ends(["a"], answer("RUNNING"))  # seen again: it counts from the start
    polling.ends(["a"], {})
    clock.now += 61
    assert polling.ends(["a"], {}) == {"a": "LOST"}
    assert polling.state("a") == "LOST"


def test_failed_query_is_no_answer(clock: Clock) -> None:
    polling = Polling()
    polling.ends(["a"], {})
    clock.now += 59
    polling.no_answer()
    clock.now += 59
    assert polling.ends(["a"], {}) == {}
    clock.now += 59
    assert polling.ends(["a"], {}) == {}


def test_quiet_jobs_are_asked_for_less_often(clock: Clock) -> None:
    polling = Polling()
    polling.submitted()
    assert polling.interval() == 1
    clock.now += 50
    assert polling.interval() == pytest.approx(5)
    clock.now += 10000
    assert polling.interval() == 15
    polling.ends(["a"], answer("RUNNING"))
    assert polling.interval() == 1
    polling.no_answer()
    assert polling.interval() == 5
    polling.ends(["a"], answer("RUNNING"))
    assert polling.interval() == 1
