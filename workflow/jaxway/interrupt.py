"""Ctrl-C: the first one ends the run, and each later one is answered by a sentence."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from jaxway_shared.errors import with_code

requested = threading.Event()


def install() -> None:
    """Handle Ctrl-C from now on. To be called from the main thread."""
    signal.signal(signal.SIGINT, _end)


def only_answer() -> None:
    """The run is ending: Ctrl-C ends nothing from now on. To be called from the main thread."""
    signal.signal(signal.SIGINT, _answer)


def last_wait(wait: Callable[[], None]) -> None:
    """Call what a run waits for while it is ending: Ctrl-C ends that, and nothing else."""
    with contextlib.suppress(KeyboardInterrupt):
        install()
        wait()
        only_answer()  # a Ctrl-C has done so


def _end(*_: object) -> None:
    """Raise KeyboardInterrupt, once: a second one would end the cancelling of jobs."""
    only_answer()  # first: the event's lock can be taken only once
    requested.set()
    raise KeyboardInterrupt


def _answer(*_: object) -> None:
    line = with_code("JW201", "Ending already")
    with contextlib.suppress(OSError):  # as in slurm/outage.py, nobody reads it
        os.write(2, f"\n{line}\n".encode())
