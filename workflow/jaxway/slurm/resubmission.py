"""Whether a training's next job follows when one has ended before the training was finished."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from jaxway_shared.errors import UserError, parse
from jaxway_shared.training import TrainingState
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from jaxway.slurm.journal import NOT_STARTED
from jaxway.slurm.outage import StoppedError

LOCK_WAIT_S = 120  # after a job: a file system takes a while to notice that a node is lost
POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Checkpoint:
    """The last checkpoint of a training; step 0, there is none."""

    folder: str = ""
    step: int = 0


@dataclass(frozen=True)
class Resubmit:
    """The next job follows; it resumes from ``step``."""

    step: int


@dataclass(frozen=True)
class Stop:
    """No further job."""

    reason: str
    code: str = "JW204"  # or that of the training's own error


@dataclass(frozen=True)
class ResumableJob:
    """A job of a training, which another one can resume: its rule sets two resources."""

    training: str  # its name
    link: Path  # resource `training_state`: leads to its state
    max_jobs: int  # resource `max_jobs`

    @classmethod
    def of(cls, job: JobExecutorInterface) -> "ResumableJob | None":
        """Of a job of Snakemake; None where none can resume it."""
        link, max_jobs = (job.resources.get(key) for key in ("training_state", "max_jobs"))
        return cls(job.wildcards.name, Path(link), max_jobs) if link and max_jobs else None

    def state(self, timeout_s: float, closing: threading.Event) -> TrainingState | None:
        """The state that its last job used; None, there is none.

        A parallel file system may refuse a file for a moment (ESTALE, EIO). UserError where it
        does so for longer; StoppedError, if Ctrl-C comes before.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return TrainingState.find(self.link)
            except OSError as error:
                if time.monotonic() > deadline:
                    reason = f"its state cannot be read: {self.link}: {error.strerror}"
                    raise UserError(
                        "JW204", f"Training {self.training} stopped: {reason}"
                    ) from None
            if closing.wait(POLL_INTERVAL_S):
                raise StoppedError


def checkpoint_of(state: TrainingState | None) -> Checkpoint:
    """The last checkpoint in a state."""
    return Checkpoint(str(state.folder), state.last_checkpoint_step or 0) if state else Checkpoint()


def decide(
    end: str, before: Checkpoint, state: TrainingState | None, jobs: int, max_jobs: int
) -> Resubmit | Stop:
    """What follows on a training's last job, the ``jobs``-th in a row.

    ``end``: Slurm's state of it, or NOT_STARTED. ``before``: the last checkpoint when it was
    submitted. ``state``: that of the training now.
    """
    if state and state.error is not None:
        error = parse(state.error)
        return Stop(str(error), error.code) if error else Stop(state.error.rstrip("."))
    if end == "CANCELLED":
        return Stop("its job was cancelled")
    now = checkpoint_of(state)
    # What has changed since has another folder, in which a training begins at step 0.
    step_before = before.step if now.folder == before.folder else 0
    if now.step <= step_before and end != NOT_STARTED:
        return Stop(f"no progress past step {step_before}")
    if jobs >= max_jobs:
        return Stop(f"reached max_jobs={max_jobs}; last checkpoint: step {now.step}")
    return Resubmit(now.step)


def find_writer(state: TrainingState | None, wait_s: float, stop: threading.Event) -> str | None:
    """Who still writes a state, after waiting so long, or until ``stop``; None, nobody.

    A job that would begin now would be refused, and the next ones too.
    """
    began = time.monotonic()
    while True:
        writer = state.writer() if state else None
        if not writer or time.monotonic() - began >= wait_s or stop.wait(POLL_INTERVAL_S):
            return writer
