"""What processes have started, and signals to all of them."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

KILL_WAIT_S = 30  # between SIGTERM and SIGKILL: Slurm's default (KillWait)


def with_descendants(processes: Iterable[int]) -> list[int]:
    """Processes, and all that they and those have started, the nearest first."""
    children = defaultdict(list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = file.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(file.parent.name))
    found = [*processes]
    for each in found:  # it grows meanwhile
        found += children[each]
    return found


def send(number: int, processes: Iterable[int]) -> None:
    """Send a signal to those of the processes that have not ended; ``-n`` is the group n."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
