"""Slurm's answers, however long they take."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable

from jaxway.slurm.queue import QueryError, SlurmJob, find_jobs

RETRY_INTERVAL_S = 5  # after a query that failed
REPORT_INTERVAL_S = 60  # between two lines about what is asked again


class StoppedError(Exception):
    """Ctrl-C came before there was an answer."""


def report(line: str) -> None:
    """Print a line for the user, if anybody reads it: behind a pipe, Ctrl-C ends `tee` first."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class PatientQueue:
    """Asks until there is an answer, and reports at most once a minute that it asks again."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing  # set by Ctrl-C
        self._reported = float("-inf")

    def find_jobs(self, names: Iterable[str]) -> dict[str, SlurmJob]:
        """See queue.find_jobs(). StoppedError if Ctrl-C comes before the answer."""
        while True:
            if self._closing.is_set():
                raise StoppedError
            try:
                return find_jobs(names)
            except QueryError as error:
                self.report_outage(error)
            self._closing.wait(RETRY_INTERVAL_S)

    def report_outage(self, error: QueryError) -> None:
        """Report that Slurm did not answer."""
        self._report(f"Slurm did not answer ({error}); asking again. Jobs are not affected.")

    def report_refusal(self, label: str, error: Exception) -> None:
        """Report that Slurm refused a training's next job."""
        self._report(f"Slurm refused {label}: {error}; asking again.")

    def _report(self, line: str) -> None:
        """Report that something is asked again, unless that was reported a moment ago."""
        if time.monotonic() - self._reported >= REPORT_INTERVAL_S:
            self._reported = time.monotonic()
            report(line)
