"""The state of a training: the folder that survives its jobs, as the program in a job writes it.

jaxway_shared.training says what is in it, and reads it.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from jaxway_shared import training
from jaxway_shared.errors import UserError, fail
from jaxway_shared.provenance import Provenance
from jaxway_shared.training import LockOwner, MetricsLine, Segment, Segments, TrainingSummary

from jaxway_job import runtime

EXIT_RESUBMIT = 75  # all is saved, the next job resumes (EX_TEMPFAIL of sysexits.h)


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that programs with a state have."""
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")


def deadline() -> float | None:
    """When this job is killed, in seconds since 1970; None, never."""
    return float(os.environ["JAXWAY_DEADLINE"]) if os.environ.get("JAXWAY_DEADLINE") else None


@contextmanager
def locked_state(args: argparse.Namespace) -> Iterator[Path]:
    """The folder of ``--state``, for this job alone. Ends the program when another one writes it.

    In a container the folder's name ends in the image's digest: another image is another training.
    A sentence with which the program ends stays there as the training's error.
    """
    folder: Path = args.state.absolute()
    if digest := runtime.container_digest(args):
        folder = folder.with_name(training.state_name(folder.name, digest))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / training.LOCK).open("a+")
    except OSError as error:
        fail("JW301", f"state {folder} cannot be written: {error.strerror}")
    with file:
        # One process holds it for all: when it fails, srun ends the others. The kernel releases
        # a lock whose owner is dead, on whatever node.
        if runtime.first_process():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.set_inheritable(file.fileno(), True)
            except BlockingIOError:
                file.seek(0)
                fail("JW300", f"state {folder} is in use by {file.read()}")
            except OSError as error:
                fail("JW301", f"state {folder} cannot be locked: {error.strerror}")
            file.truncate(0)
            job = os.environ.get("SLURM_JOB_ID", "none")
            file.write(str(LockOwner(socket.gethostname(), os.getpid(), job)))
            file.flush()
            (folder / training.ERROR).unlink(missing_ok=True)
        try:
            with recorded_error(folder):
                check_version(folder)
                yield folder
        finally:  # also for what the program has left behind, which inherited the lock
            if runtime.first_process():
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def recorded_error(folder: Path) -> Iterator[None]:
    """Keep the sentence with which the program ends, if it does, as the training's error."""
    try:
        try:
            yield
        except UserError as error:
            fail(error.code, str(error))
    except SystemExit as end:
        if isinstance(end.code, str):
            with suppress(OSError):  # on a full disk it stays empty, which readers know
                (folder / training.ERROR).write_text(f"{end.code}\n")
        raise


def check_version(folder: Path) -> None:
    """End the program if the state was written before its files were renamed."""
    if (folder / "step").exists() and not (folder / training.LAST_CHECKPOINT_STEP).exists():
        fail(
            "JW302",
            f"state {folder} has a file `step`, which is called `{training.LAST_CHECKPOINT_STEP}` "
            "now: rename it, in your own program too, or delete the folder to start over",
        )


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Record what a state is made with, or end the program when it was made with something else."""
    path = folder / "settings.json"
    try:
        before = json.loads(path.read_text()) if path.exists() else settings
    except (OSError, ValueError) as error:
        fail("JW302", f"{path} cannot be read ({error}); delete {folder} to start over")
    for name, value in settings.items():
        if before.get(name) != value:
            fail(
                "JW302",
                f"state {folder} has {name} {before.get(name)}, not {value}; "
                "delete that folder to start over",
            )
    runtime.write_json(path, dict(settings))


def exit_for_resubmission(reason: str) -> NoReturn:
    """End the program, so that the next job of this training is submitted."""
    if runtime.first_process():
        print(f"{reason}, can be resumed", flush=True)
    sys.exit(EXIT_RESUBMIT)


def record_checkpoint(folder: Path, step: int) -> None:
    """Record the step of the newest finished checkpoint."""
    runtime.atomic_replace(folder / training.LAST_CHECKPOINT_STEP, f"{step}\n")


# ---------------------------------------------------------------------------------------- metrics


def append_metrics(folder: Path, values: Mapping[str, float | None]) -> MetricsLine:
    """Add a line of metrics. Only the first process writes."""
    line = json.dumps(values)
    if runtime.first_process():
        path = folder / training.METRICS
        with runtime.explain_write(path), path.open("a") as file:
            file.write(line + "\n")
    return MetricsLine.parse(line)


def sync_metrics(folder: Path) -> None:
    """Have all lines of metrics on the disk, if there are any. Only the first process does."""
    path = folder / training.METRICS
    if runtime.first_process() and path.exists():
        with runtime.explain_write(path), path.open("a") as file:
            os.fsync(file.fileno())


def drop_metrics_after(folder: Path, step: int) -> None:
    """Drop the lines of metrics after a step, since these steps are done again."""
    path = folder / training.METRICS
    kept = [line for line in training.metrics_text(path) if MetricsLine.parse(line).step <= step]
    runtime.atomic_replace(path, "".join(kept))


# --------------------------------------------------------------------------------------- segments


class SegmentLog:
    """Records what each job of a training does, this one last.

    ``resumed_step``: that of the checkpoint from which this job resumes; 0, it starts.
    ``job_start``: when, by time.perf_counter().
    """

    def __init__(
        self, folder: Path, resumed_step: int, job_start: float, provenance: Provenance
    ) -> None:
        self.folder, self.job_start = folder, job_start
        earlier = training.read_segments(folder)
        if earlier:  # a kill may come between a checkpoint and its record
            last = dataclasses.replace(earlier[-1], last_step=resumed_step)
            earlier = (*earlier[:-1], last)
        self.earlier = earlier
        self.current = Segment(resumed_step + 1, resumed_step, 0.0, provenance)
        drop_metrics_after(folder, resumed_step)
        self.record_progress(resumed_step)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All jobs, oldest first."""
        return (*self.earlier, self.current)

    @property
    def seconds(self) -> float:
        """Time of all jobs up to their newest checkpoints."""
        return sum(segment.seconds for segment in self.segments)

    def record_progress(self, step: int, **changes: Any) -> None:
        """Record that there is a checkpoint of a step, and what else has changed."""
        seconds = time.perf_counter() - self.job_start
        self.current = dataclasses.replace(self.current, last_step=step, seconds=seconds, **changes)
        content = Segments(self.segments).to_json()
        runtime.atomic_replace(self.folder / training.SEGMENTS, json.dumps(content) + "\n")


# ---------------------------------------------------------------------------------------- results


def rewrite_results(folder: Path, out: Path) -> bool:
    """Whether the training has finished before; if so, write its results once more."""
    finished = (folder / training.SUMMARY).exists()
    if finished:
        write_results(folder, out, training.read_summary(folder / training.SUMMARY))
    return finished


def write_results(folder: Path, out: Path, summary: TrainingSummary) -> None:
    """Write the results: metrics first, and last the summary, whose existence means finished."""
    metrics = training.metrics_text(folder / training.METRICS)
    runtime.atomic_replace(out.with_name(training.METRICS), "".join(metrics))
    content = summary.to_json()
    runtime.write_json(folder / training.SUMMARY, content)
    runtime.write_json(out, content)
