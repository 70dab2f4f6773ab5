"""Cancel jobs, and say which."""

import time

from jaxway_shared.errors import with_code

from jaxway.slurm.commands import error_message, run_query
from jaxway.slurm.journal import Submission
from jaxway.slurm.outage import PatientQueue, report
from jaxway.slurm.queue import QueryError

CANCEL_TIMEOUT_S = 60
RETRY_INTERVAL_S = 1


def arguments(jobs: list[Submission]) -> list[list[str]]:
    """Arguments of scancel: all ids at once, and each name of a job whose id is not known."""
    ids = [each.id for each in jobs if each.id]
    names = [["--me", f"--name={each.name}"] for each in jobs if not each.id]
    return ([ids] if ids else []) + names


def cancel(jobs: list[Submission], queue: PatientQueue) -> None:
    """Cancel jobs, however often scancel fails within a minute."""
    if not jobs:
        return
    deadline = time.monotonic() + CANCEL_TIMEOUT_S
    names = ", ".join(map(str, jobs))
    calls = arguments(jobs)
    while True:
        results = [run_query("scancel", *words) for words in calls]
        failed = [result for result in results if result.returncode]
        if not failed:
            report(f"Cancelled: {names}.")
            return
        error = QueryError(f"scancel: {error_message(failed[0])}")
        if time.monotonic() > deadline:
            line = " && ".join(" ".join(["scancel", *words]) for words in calls)
            report(with_code("JW206", f"Not cancelled: {names} ({error}); later: `{line}`"))
            return
        queue.report_outage(error)
        time.sleep(RETRY_INTERVAL_S)
