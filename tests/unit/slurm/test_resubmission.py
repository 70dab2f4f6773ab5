"""Whether a training's next job follows."""

from pathlib import Path

import pytest
from jaxway.slurm.resubmission import Checkpoint, Resubmit, Stop, checkpoint_of, decide
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
        # Another image: another folder, which begins at step 0.
        ("FAILED", 10, state(5, folder="s-new"), 1, Resubmit(5)),
        ("FAILED", 10, state(None, folder="s-new"), 1, Stop("no progress past step 0")),
        # It got further, but no job is wanted.
        ("FAILED", 0, state(10, "the loss is nan."), 1, Stop("the loss is nan")),
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
