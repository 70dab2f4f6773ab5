"""Ctrl-C: the first one ends the run, and each later one is answered by a sentence."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from jaxway_shared.errors import with_code

requested = threading.Event()


def install() -> None:
    """Handle Ctrl-C from now on. To be called from the main thread."""
    signal.signal(signal.SIGINT, _end)


def only_answer() -> None:
    """The run is ending: Ctrl-C ends nothing from now on. To be called from the main thread."""
    signal.signal(signal.SIGINT, _answer)


@contextlib.contextmanager
def last_wait() -> Iterator[None]:
    """A wait of a run that is ending: Ctrl-C ends it, and nothing else."""
    install()
    with contextlib.suppress(KeyboardInterrupt):
        yield
    only_answer()


def _end(*_: object) -> None:
    """Raise KeyboardInterrupt, once: a second one would end the cancelling of jobs."""
    only_answer()  # first: the event's lock can be taken only once
    requested.set()
    raise KeyboardInterrupt


def _answer(*_: object) -> None:
    line = with_code("JW201", "Ending already: jobs that are left are ended first, and then listed")
    with contextlib.suppress(OSError):  # as in slurm/outage.py, nobody reads it
        os.write(2, f"\n{line}\n".encode())
