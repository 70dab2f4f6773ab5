"""Ctrl-C: the first one ends the run, and each later one is answered by a sentence."""

import contextlib
import os
import signal
import threading

from jaxway_shared.errors import with_code

requested = threading.Event()


def install() -> None:
    """Handle Ctrl-C from now on. To be called from the main thread."""
    signal.signal(signal.SIGINT, handle)


def handle(*_: object) -> None:
    """Raise KeyboardInterrupt, once: a second one would end the cancelling of jobs."""
    if requested.is_set():
        line = with_code("JW201", "Ending already: jobs are ended first, and then listed")
        with contextlib.suppress(OSError):  # as in slurm/outage.py, nobody reads it
            os.write(2, f"\n{line}\n".encode())
        return
    requested.set()
    raise KeyboardInterrupt
