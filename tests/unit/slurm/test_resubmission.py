"""Whether a training's next job follows."""

import fcntl
import threading
from pathlib import Path

import pytest
from jaxway.slurm.resubmission import (
    Checkpoint,
    Resubmit,
    Stop,
    checkpoint_of,
    decide,
    find_writer,
)
from jaxway_shared.training import TrainingState


def state(step: int | None, error: str | None = None, folder: str = "s") -> TrainingState:
    return TrainingState(Path(folder), step, error)


@pytest.mark.parametrize(
    ("end", "before", "now", "jobs", "decision"),
    [
        # It got further.
        ("FAILED", 0, state(10), 1, Resubmit(10)),
        ("TIMEOUT", 10, state(11), 9, Resubmit(11)),
        ("NODE_FAIL", 10, state(20), 2, Resubmit(20)),
        ("LOST", 10, state(20), 2, Resubmit(20)),
        # It did not.
        ("FAILED", 10, state(10), 1, Stop("no progress past step 10")),
        ("NODE_FAIL", 0, state(None), 1, Stop("no progress past step 0")),
        ("NODE_FAIL", 0, None, 1, Stop("no progress past step 0")),
        ("FAILED", 10, state(9), 1, Stop("no progress past step 10")),
        # Others had their turn in the job that it shared.
        ("NOT STARTED", 10, state(10), 1, Resubmit(10)),
        ("NOT STARTED", 0, None, 1, Resubmit(0)),
        ("NOT STARTED", 0, None, 10, Stop("reached max_jobs=10; last checkpoint: step 0")),
        # Another image: another folder, which begins at step 0.
        ("FAILED", 10, state(5, folder="s-new"), 1, Resubmit(5)),
        ("FAILED", 10, state(None, folder="s-new"), 1, Stop("no progress past step 0")),
        # It got further, but no job is wanted.
        ("FAILED", 0, state(10, "the loss is nan."), 1, Stop("the loss is nan")),
        ("FAILED", 0, state(10, "x.py: it is nan [JW305]"), 1, Stop("x.py: it is nan", "JW305")),
        ("CANCELLED", 0, state(10), 1, Stop("its job was cancelled")),
        ("CANCELLED", 0, state(10, "disk full"), 1, Stop("disk full")),
        ("TIMEOUT", 0, state(10), 10, Stop("reached max_jobs=10; last checkpoint: step 10")),
    ],
)
def test_decision(end: str, before: int, now: TrainingState | None, jobs: int, decision) -> None:
    assert decide(end, Checkpoint("s", before), now, jobs, 10) == decision


def test_no_state_is_no_checkpoint() -> None:
    assert checkpoint_of(None) == Checkpoint("", 0)
    assert checkpoint_of(state(None)) == Checkpoint("s", 0)


@pytest.mark.parametrize("released", [True, False])
def test_a_lock_that_outlasts_its_job_is_waited_for(tmp_path: Path, released: bool) -> None:
    """The event, set, stands for Ctrl-C or the end of the time; its wait releases the lock."""
    stop = threading.Event()
    with (tmp_path / "lock").open("w") as lock:
        lock.write("host a, process 1, job 7")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = TrainingState(tmp_path, 4, None)
        assert find_writer(found, 0, stop) == "host a, process 1, job 7"
        timer = threading.Timer(0.1, fcntl.flock, (lock.fileno(), fcntl.LOCK_UN))
        timer.start() if released else stop.set()
        assert (find_writer(found, 60, stop) is None) == released
        timer.join() if released else None


def test_a_state_without_a_lock_has_no_writer(tmp_path: Path) -> None:
    for found in (None, TrainingState(tmp_path, 4, None)):
        assert find_writer(found, 60, threading.Event()) is None
    (tmp_path / "lock").write_text("host a, process 1, job 7")  # of one that has ended
    assert find_writer(TrainingState(tmp_path, 4, None), 60, threading.Event()) is None
