"""How long each part of a program's start takes."""

import os
import time
from pathlib import Path


class StartupTimer(dict[str, float]):
    """Seconds that each part of a start took, from the start of the process on."""

    def __init__(self) -> None:
        super().__init__()
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self.process_start = self.last_mark = time.perf_counter() - age
        self.mark("imports")

    def mark(self, part: str) -> None:
        """Record that a part has ended now."""
        now = time.perf_counter()
        self[part], self.last_mark = now - self.last_mark, now
