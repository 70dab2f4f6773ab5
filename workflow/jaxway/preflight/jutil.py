"""What JSC's command `jutil` tells of projects, budgets and quotas; its figures are of last night.

With `-o json` it prints a list with a mapping for each line of its table. Known are the keys of
`user projects` (profiles of PIConGPU, jupyter_viz_extension) and of `project dataquota` (ECMWF's
Anemoi), but not those of `user cpuquota`: its mappings are shown as they are.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxway.slurm.commands import error_message, run_query

TIMEOUT_S = 30
MAX_SHOWN = 200  # characters of an answer

Line = Mapping[str, Any]
T = TypeVar("T")


class UnrecognizedError(Exception):
    """An answer is missing, or has another form; ``str()`` shows it."""


class Project(NamedTuple):
    name: str
    budgets: list[str]  # accounts of Slurm

    @classmethod
    def of(cls, line: Line) -> "Project":
        budgets = re.findall(r"[\w.-]+", str(line["budget-accounts"]))
        return cls(str(line["project"]), [name for name in budgets if name != "-"])


class Left(NamedTuple):
    """Of a limit; inf, where there is none."""

    bytes: float
    inodes: float


class Quota(NamedTuple):
    """What a project has left below a folder."""

    folder: Path
    soft: Left  # beyond it, writing is refused after a while
    hard: Left  # beyond it, writing is refused

    @classmethod
    def of(cls, line: Line) -> "Quota":
        used, soft, hard = figures(line, "data")
        inodes, soft_inodes, hard_inodes = figures(line, "inode")
        return cls(
            Path(line["project-dir"]),
            Left(1024 * left(soft or hard, used), left(soft_inodes or hard_inodes, inodes)),
            Left(1024 * left(hard, used), left(hard_inodes, inodes)),
        )


def projects() -> list[Project]:
    """Those of this user."""
    return ask("user", "projects", read=Project.of)


def data_quotas(project: str) -> list[Quota]:
    return ask("project", "dataquota", "--project", project, "-U", "KB", read=Quota.of)


def cpu_quota(budget: str) -> str:
    """What is left of a budget on this system, in the words of jutil."""
    lines = ask("user", "cpuquota", "-Z", "-A", budget, read=lambda line: [*line.items()])
    return shown("; ".join(", ".join(f"{k} {v}" for k, v in line) for line in lines))


def figures(line: Line, of: str) -> list[int]:
    """Usage, soft and hard limit: a number of inodes, or of KB, such as 123KB."""
    keys = (f"{of}-usage", f"{of}-soft-limit", f"{of}-hard-limit")
    return [int(str(line[key]).removesuffix("KB")) for key in keys]


def left(limit: int, used: int) -> float:
    return limit - used if limit else math.inf


def ask(*words: str, read: Callable[[Line], T]) -> list[T]:
    """What is read from each line of a table."""
    result = run_query("jutil", *words, "-o", "json", timeout_s=TIMEOUT_S)
    command = f"`jutil {' '.join(words)}`"
    if result.returncode:
        raise UnrecognizedError(f"{command} failed: {shown(error_message(result))}")
    try:
        return [read(line) for line in json.loads(result.stdout)]
    except (AttributeError, LookupError, TypeError, ValueError):
        message = f"{command} printed in a form that is not known: {shown(result.stdout)}"
        raise UnrecognizedError(message) from None


def shown(answer: str) -> str:
    """The beginning of an answer, in one line."""
    line = " ".join(answer.split()) or "nothing"
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."
