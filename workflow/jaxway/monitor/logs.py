"""Progress of jobs from their files: logs, and the metrics of trainings."""

import contextlib
import os
import re
import socket
import statistics
import time
from pathlib import Path

from jaxway_shared import identity
from jaxway_shared.training import LOCK, METRICS, LockOwner, MetricsLine

STALE_AFTER_S = 60  # without output; then the line says for how long
TAIL_BYTES = 65536
PACE_LINES = 10  # lines of metrics from which the time left is estimated
ID = "[0-9a-f]" * identity.DIGITS  # in a state's name; `a` is not `a-b`
CONTROL_RE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


def tail(file: Path) -> list[str]:
    """The last lines of a file; none, where it cannot be read."""
    try:
        with file.open("rb") as opened:
            begin = max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES)
            opened.seek(begin)
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if begin else lines


def last_log_line(log: Path) -> str:
    """The last line of a log, and for how long there was no other, if that is long."""
    lines = (printable(line) for line in reversed(tail(log)))
    line = next((line for line in lines if line and not line.startswith("INFO: ")), "")
    if not line:  # INFO: Apptainer's
        return "no output yet"
    age = time.time() - (modified(log) or time.time())
    return line + (f" (no output for {duration(age)})" if age > STALE_AFTER_S else "")


def printable(line: str) -> str:
    """A line without what controls a terminal."""
    return "".join(filter(str.isprintable, CONTROL_RE.sub("", line))).strip()


def modified(file: Path) -> float | None:
    """When a file was last changed; None, where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def running_state(scratch: str, name: str, job: str) -> Path | None:
    """The state that a training's job writes. Without Slurm (``job``: "") its process runs here."""
    for lock in Path(scratch, "train").glob(f"{name}-{ID}/{LOCK}"):
        owner = LockOwner.parse("\n".join(tail(lock)))
        if owner and (owner.job == job if job else is_alive(owner)):
            return lock.parent
    return None


def is_alive(owner: LockOwner) -> bool:
    """Whether it is a process on this machine."""
    return owner.host == socket.gethostname() and Path("/proc", str(owner.process)).exists()


def training_progress(state: Path, steps: int | None) -> str:
    """How far a training is, by its metrics; empty, when there are none yet."""
    lines: list[MetricsLine] = []
    for text in tail(state / METRICS):
        with contextlib.suppress(ValueError):  # a line that is being written, or is broken
            lines.append(MetricsLine.parse(text))
    if not lines:
        return ""
    step, numbers = lines[-1].step, lines[-1].numbers
    parts = [f"step {step}" + (f" of {steps}" if steps else "")]
    if "loss" in numbers:
        parts.append(f"loss {numbers['loss']:.3g}")
    if "tokens_per_second" in numbers:
        parts.append(f"{short_number(numbers['tokens_per_second'])} tokens/s")
    # A line's figure is a mean over its steps, and a single one may hold a checkpoint.
    recent = [line.numbers for line in lines[-PACE_LINES:]]
    paces = [each["step_seconds"] for each in recent if "step_seconds" in each]
    if steps and step < steps and paces:
        parts.append(f"{duration((steps - step) * statistics.median(paces))} left")
    return ", ".join(parts)


def short_number(number: float) -> str:
    """A number in three digits: 152k."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def duration(seconds: float) -> str:
    """A time in a unit that suits it."""
    for most, length, unit in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < most:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
