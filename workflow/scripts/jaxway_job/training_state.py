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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from jaxway_shared import identity, training
from jaxway_shared.errors import UserError, fail
from jaxway_shared.identity import Identity
from jaxway_shared.provenance import Provenance
from jaxway_shared.training import (
    LockOwner,
    MetricsLine,
    Segment,
    Segments,
    TrainingState,
    TrainingSummary,
)

from jaxway_job import runtime

EXIT_RESUBMIT = 75  # all is saved, the next job resumes (EX_TEMPFAIL of sysexits.h)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that programs with a state have."""
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")
    parser.add_argument(
        "--states",
        type=Path,
        help="how names of states begin that their identity ends; --state becomes a link to one",
    )


def identity_of(
    args: argparse.Namespace,
    program: str,
    options: Mapping[str, Mapping[str, Any]],
    data: str | None = None,
    **more: Any,
) -> Identity:
    """What this training is: its ``OPTIONS`` as they are set, sha256 of its data, and the rest.

    ``more``: in place of options.
    """
    affecting = [name for name, option in options.items() if option.get("affects_result", True)]
    values = {name: getattr(args, name) for name in affecting} | more
    path = os.environ.get("PYTHONPATH", "")
    content = identity.program_content(program, values.get("command"), path)
    image = runtime.container_digest(args) or f"JAX {runtime.JAX_BUILD}"
    return Identity(values, data, content, image)


def deadline() -> float | None:
    """When this job is killed, in seconds since 1970; None, never."""
    return float(os.environ["JAXWAY_DEADLINE"]) if os.environ.get("JAXWAY_DEADLINE") else None


def find_folder(args: argparse.Namespace, this: Identity) -> Path:
    """The folder of this training's state.

    If the program was edited since the last job of this run, that job's, unless this one's has a
    checkpoint: what was computed is not to be thrown away unasked, see check_identity().
    """
    if not args.states:
        return args.state.absolute()
    own = this.folder(args.states.absolute())
    last = TrainingState.find(args.state)
    if last and last.last_checkpoint_step and not (last.folder / training.SUMMARY).exists():
        before = read_identity(last.folder)
        edited = before and before != this and before.same_but_program(this)
        if edited and not TrainingState.read(own).last_checkpoint_step:
            return last.folder
    return own


@contextmanager
def locked_state(
    args: argparse.Namespace, this: Identity, extend: Callable[[Path, Identity], int] | None = None
) -> Iterator[Path]:
    """The folder of the state, for this job alone. Ends the program when another one writes it.

    A sentence with which the program ends stays there as the training's error. ``extend`` has a new
    state go on from the step of another one that it returns; 0, there is none.
    """
    folder = find_folder(args, this)
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
            if args.states:
                link_to(folder, args.state)
        try:
            with recorded_error(folder):
                check_version(folder)
                check_identity(folder, this, args.states, extend)
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


def link_to(folder: Path, link: Path) -> None:
    """Have a link lead to a state, by which others find it."""
    part = link.with_name(f"{link.name}.part")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        part.symlink_to(folder)
        part.replace(link)
    except OSError as error:
        fail("JW301", f"link {link} cannot be made: {error.strerror}")


def check_identity(
    folder: Path,
    this: Identity,
    states: Path | None,
    extend: Callable[[Path, Identity], int] | None,
) -> None:
    """Record what a state is of. Ends the program when that is something else.

    An unfinished state of another program is resumed where the user says so: who gives it the name
    that is due to this program, or names it in ``--state``.
    """
    before = read_identity(folder)
    own = this.folder(states.absolute()) if states else folder
    if before and before != this:
        made = f"state {folder} was made with {', '.join(before.differences(this))}"
        unfinished = this.same_but_program(before) and not (folder / training.SUMMARY).exists()
        if folder != own or not unfinished:
            rename = f", `mv {folder} {own}` to resume with what is there now," * (folder != own)
            advice = f"restore that to resume{rename} or `rm -r {folder}` to start over"
            fail("JW302", f"{made}: {advice}")
        if runtime.first_process():
            print(f"{made}, and is resumed with what is there now", flush=True)
    if states and not before and runtime.first_process():
        step = extend(own, this) if extend else 0
        if step:
            record_checkpoint(own, step)
        else:
            compare_beside(this, own)
    runtime.write_json(folder / identity.FILE, this.to_json())


def read_identity(folder: Path) -> Identity | None:
    """What a state is of; None, it is new."""
    try:
        return Identity.read(folder)
    except FileNotFoundError:
        return None


def compare_beside(this: Identity, own: Path) -> None:
    """Print how a new training differs from the one that is most like it."""
    others = identity.states_beside(own)
    found = [(this.differences(other), folder) for folder, other in others]
    if found:
        differences, folder = min(found, key=lambda each: len(each[0]))
        finished = (folder / training.SUMMARY).exists()
        step = TrainingState.read(folder).last_checkpoint_step or 0
        other = f"{folder}, which {'is finished' if finished else f'has got to step {step}'}"
        if any(each.startswith("schedule_steps ") for each in differences):
            other += (
                "; a schedule that ends with `steps` cannot go on (docs/training.md#more-steps)"
            )
        print(f"starting at step 0: {', '.join(differences)} as in {other}", flush=True)


def exit_for_resubmission(reason: str) -> NoReturn:
    """End the program, so that the next job of this training is submitted."""
    if runtime.first_process():
        print(f"{reason}, can be resumed", flush=True)
    sys.exit(EXIT_RESUBMIT)


def record_checkpoint(folder: Path, step: int) -> None:
    """Record the step of the newest finished checkpoint."""
    runtime.atomic_replace(folder / training.LAST_CHECKPOINT_STEP, f"{step}\n")


# ---------------------------------------------------------------------------------------- metrics


def append_metrics(folder: Path, values: Mapping[str, Any]) -> MetricsLine:
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
    """Whether the training has finished before; if so, write its results once more, and its log."""
    finished = (folder / training.SUMMARY).exists()
    if finished:
        summary = training.read_summary(folder / training.SUMMARY)
        write_results(folder, out, summary)
        if runtime.first_process():
            log, last = folder / training.LOG, summary.provenance
            sys.stdout.write(log.read_text(errors="replace") if log.exists() else "")
            job = f"job {last.job} of {last.time}" if last.job else f"a run of {last.time}"
            print(f"{folder}: finished by {job} on {last.nodes}; {training.NOT_AGAIN}", flush=True)
    return finished


def write_results(folder: Path, out: Path, summary: TrainingSummary) -> None:
    """Write the results: metrics first, and last the summary, whose existence means finished."""
    metrics = training.metrics_text(folder / training.METRICS)
    runtime.atomic_replace(out.with_name(training.METRICS), "".join(metrics))
    content = summary.to_json()
    runtime.write_json(folder / training.SUMMARY, content)
    runtime.write_json(out, content)
