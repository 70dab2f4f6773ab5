"""The run's jobs in Slurm's queue."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from jaxway.config.site import Site
from jaxway.slurm.commands import error_message, run_query

POSITION_INTERVAL_S = 60  # between two queries of all jobs that wait in a partition
SQUEUE_TIMEOUT_S = 60


class QueuedJob(NamedTuple):
    """A job as Slurm lists it."""

    id: str
    state: str
    comment: str
    partition: str
    elapsed: str
    time_left: str
    start: str
    nodes: str
    reason: str
    folder: str

    @property
    def is_pending(self) -> bool:
        return self.state == "PENDING"


FORMAT = "--format=%i|%T|%k|%P|%M|%L|%S|%N|%r|%Z"  # QueuedJob's fields


def comments_of_sharing(comment: str) -> list[str]:
    """One for each job that a job of Slurm runs: the names of several have commas between them."""
    rule, separator, names = comment.partition("_wildcards_")
    return [f"{rule}{separator}{name}" for name in names.split(",")]


def squeue(*options: str) -> list[str]:
    """Lines of squeue's output; OSError, if it fails."""
    result = run_query("squeue", "--noheader", *options, timeout_s=SQUEUE_TIMEOUT_S)
    if result.returncode:
        raise OSError(error_message(result))
    return result.stdout.splitlines()


class Queue:
    """The jobs that were submitted from this folder; the last known ones while Slurm is down.

    ``with_positions``: find out also how many jobs wait before them, for which Slurm lists them
    all.
    """

    def __init__(self, site: Site, interval_s: float, with_positions: bool) -> None:
        self.has_slurm = bool(site.launcher)
        self.interval_s, self.with_positions = interval_s, with_positions
        self.jobs: list[QueuedJob] = []
        self.positions: dict[str, str] = {}
        self.problem = ""
        self.last_query = self.last_position_query = -math.inf

    def refresh(self) -> None:
        """Ask Slurm one question, if the last one was long enough ago."""
        now = time.monotonic()
        if not self.has_slurm or now - self.last_query < self.interval_s:
            return
        self.last_query = now
        positions_are_old = now - self.last_position_query >= POSITION_INTERVAL_S
        if self.with_positions and self.pending() and positions_are_old:
            self.last_position_query = now
            self.refresh_positions()
        else:
            self.refresh_jobs()

    def pending(self) -> list[QueuedJob]:
        return [job for job in self.jobs if job.is_pending]

    def refresh_jobs(self) -> None:
        with self.recording_problem():
            lines = [line.split("|", 9) for line in squeue("--me", FORMAT)]
            jobs = [QueuedJob(*fields) for fields in lines if len(fields) == 10]
            here = os.getcwd()
            self.jobs = [
                job._replace(comment=comment)
                for job in jobs
                if job.comment.startswith("rule_") and job.folder == here
                for comment in comments_of_sharing(job.comment)
            ]

    def refresh_positions(self) -> None:
        with self.recording_problem():
            partitions = sorted({job.partition for job in self.pending()})
            options = ["--states=PENDING", f"--partition={','.join(partitions)}", "--sort=-p"]
            listed = [line.split() for line in squeue(*options, "--format=%P %i")]
            self.positions = {}
            for partition in partitions:
                ids = [id for names, id in listed if partition in names.split(",")]
                for position, id in enumerate(ids, 1):
                    self.positions[id] = f"position {position} of {len(ids)} in {partition}"

    @contextlib.contextmanager
    def recording_problem(self) -> Iterator[None]:
        try:
            yield
            self.problem = ""
        except OSError as error:
            self.problem = f"not responding: {error}"


def pending_text(job: QueuedJob, position: str) -> str:
    """Why a job waits, and until when."""
    reason = "" if job.reason in ("", "None") else f" ({job.reason})"
    start = short_time(job.start)
    parts = [f"pending as job {job.id}{reason}", position, start and f"expected to start {start}"]
    return ", ".join(filter(None, parts))


def running_text(job: QueuedJob) -> str:
    """Where a job runs, and for how long."""
    verb = "runs" if job.state == "RUNNING" else f"is {job.state.lower()}"
    return f"job {job.id} {verb} on {job.nodes} for {job.elapsed}, {job.time_left} left"


def short_time(time_stamp: str) -> str:
    """A time of Slurm's, without the date if it is today; empty, where it is not known."""
    try:
        moment = datetime.fromisoformat(time_stamp)
    except ValueError:
        return ""
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M" if today else "%a %d %b %H:%M")
