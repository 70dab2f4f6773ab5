"""Cancel jobs, and say which."""

import re
import time
from collections.abc import Container, Iterator

from jaxway_shared.errors import UserError, with_code

from jaxway.slurm.commands import error_message, run_query
from jaxway.slurm.journal import Journal, Submission
from jaxway.slurm.outage import PatientQueue, report
from jaxway.slurm.queue import QueryError

CANCEL_TIMEOUT_S = 60
CANCEL_INTERVAL_S = 1  # between two calls of scancel
# Slurm knows an ended job for some minutes (MinJobAge).
GONE_RE = re.compile("Invalid job id|already complet")


def arguments(jobs: list[Submission]) -> list[str]:
    """Arguments of scancel for jobs with ids, or for one whose id is not known."""
    ids = dict.fromkeys(each.id for each in jobs if each.id)
    return [*ids] or ["--me", f"--name={jobs[0].slurm_name}"]


def failures(jobs: list[Submission]) -> Iterator[tuple[list[Submission], str]]:
    """Call scancel; the jobs for which that failed, and why. A job that is gone is no failure."""
    result = run_query("scancel", *arguments(jobs))
    if not result.returncode:
        return
    if not GONE_RE.search(result.stderr):
        yield jobs, error_message(result)
    elif len(jobs) > 1:
        for each in jobs:
            yield from failures([each])


def cancel(jobs: list[Submission], queue: PatientQueue) -> None:
    """Cancel jobs, however often scancel fails within a minute."""
    if not jobs:
        return
    deadline = time.monotonic() + CANCEL_TIMEOUT_S
    known = [each for each in jobs if each.id]
    left = ([known] if known else []) + [[each] for each in jobs if not each.id]
    while True:
        failed = [failure for group in left for failure in failures(group)]
        left = [group for group, _ in failed]
        if not failed:
            report(f"Cancelled: {', '.join(map(str, jobs))}.")
            return
        error = QueryError(f"scancel: {failed[0][1]}")
        if time.monotonic() > deadline:
            names = ", ".join(str(each) for group in left for each in group)
            line = " && ".join(" ".join(["scancel", *arguments(group)]) for group in left)
            report(with_code("JW206", f"Not cancelled: {names} ({error}); later: `{line}`"))
            return
        queue.report_outage(error)
        time.sleep(CANCEL_INTERVAL_S)


def report_open(journal: Journal, own: Container[str] = ()) -> None:
    """Name the jobs of an earlier run whose end no run has seen; ``own``: names of others."""
    try:
        left = [str(each) for name, each in journal.open_submissions().items() if name not in own]
    except UserError as error:
        report(error.line())
        return
    if left:
        report(f"Jobs of an earlier run may still run: {', '.join(left)}.")
