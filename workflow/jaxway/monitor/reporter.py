"""Print what is new of a run's jobs, until it ends."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator

from jaxway.config.jobs import Config
from jaxway.config.site import Site
from jaxway.monitor.slurm_queue import Queue
from jaxway.monitor.status import JobStatus, job_statuses

QUEUE_INTERVAL_S, FILES_INTERVAL_S = 30, 5
# Between two lines of a training on a terminal, and in a file.
TERMINAL_INTERVAL_S, FILE_INTERVAL_S = 30, 600


class ProgressReporter:
    """What is new since it was last reported."""

    def __init__(self, interval_s: float) -> None:
        """``interval_s``: between two lines of a training."""
        self.interval_s = interval_s
        self.last_reported: dict[tuple[str, str], tuple[str, str, float]] = {}

    def lines(self, statuses: Iterable[JobStatus]) -> Iterator[str]:
        """A line for each thing that is new."""
        for status in statuses:
            # Of a job that runs its start is new; of one that is pending, when it may start.
            interval_s = FILE_INTERVAL_S if status.is_pending else math.inf
            state = (status.stage, status.state)
            if status.stage and self.is_new((status.key, "state"), *state, interval_s):
                yield f"{status.label}: {', '.join(filter(None, [status.state, status.page]))}"
            progress = ("", status.progress)
            if status.progress and self.is_new(
                (status.key, "progress"), *progress, self.interval_s
            ):
                yield f"{status.label}: {status.progress}"

    def is_new(self, key: tuple[str, str], stage: str, text: str, interval_s: float) -> bool:
        """Whether there is another stage, or after the interval another text: reported now."""
        last_stage, last_text, when = self.last_reported.get(key, (None, "", 0.0))
        now = time.monotonic()
        if stage == last_stage and (text == last_text or now - when < interval_s):
            return False
        self.last_reported[key] = stage, text, now
        return True


@contextlib.contextmanager
def report_in_background(config: Config, site: Site) -> Iterator[None]:
    """Print in this terminal, from a thread, what is new of the jobs of this run."""
    end = threading.Event()
    thread = threading.Thread(target=report_progress, args=(config, site, end), daemon=True)
    with contextlib.suppress(RuntimeError):  # this user has too many processes
        thread.start()
    try:
        yield
    finally:
        end.set()
        if thread.is_alive():
            thread.join(2)  # Python aborts if it ends while a thread prints


def report_progress(config: Config, site: Site, end: threading.Event) -> None:
    """Print what is new until the end. Whatever goes wrong here is not to harm the run."""
    reporter = ProgressReporter(TERMINAL_INTERVAL_S if sys.stderr.isatty() else FILE_INTERVAL_S)
    queue = Queue(site, QUEUE_INTERVAL_S, with_positions=False)  # without squeue, it has no jobs
    with contextlib.suppress(Exception):
        while not end.wait(FILES_INTERVAL_S):
            queue.refresh()
            for line in reporter.lines(job_statuses(config, site, queue)):
                # In one piece: the rich logger puts its own lines and bar around it.
                sys.stderr.write(f"{time.strftime('%H:%M')} {line}\n")
                sys.stderr.flush()
