"""The container's view: whether it sees the files that its jobs use."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxway.config.jobs import SubmittedJob, TrainJob
from jaxway.config.schema import WORKFLOW
from jaxway.launch import command_line
from jaxway.preflight.finding import Findings, failure, passed, warning
from jaxway.preflight.folders import nearest_existing_parent
from jaxway.slurm.commands import error_message, run_query

START_TIMEOUT_S = 60
PRINT_UNREADABLE = 'for path; do [ -r "$path" ] || echo "$path"; done'


def check_visible(start: Sequence[str], used: Mapping[str, str]) -> Findings:
    """``start``: words that start a command in the container, once and on this node. ``used``: who
    uses a path."""
    command = [*start, "sh", "-c", PRINT_UNREADABLE, "sh", *used]
    result = run_query("bash", "-c", command_line(command), timeout_s=START_TIMEOUT_S)
    if result.returncode:
        yield warning(f"the container was not looked into: {error_message(result)}")
        return
    missing = [path for path in result.stdout.splitlines() if path in used]
    for path in missing:
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        yield failure(
            "JW516",
            f"{used[path]}: the container does not see {path}: set `environment: {{APPTAINER_BIND: "
            f"{folder}}}` (folders with commas between them)",
        )
    if not missing:
        yield passed("the container sees workflow, scratch and the files of commands")


def used_paths(jobs: Mapping[str, SubmittedJob], scratch: str) -> dict[str, str]:
    """Who uses a path that is there, on this node."""
    paths = {
        str(WORKFLOW / "scripts"): "the workflow",
        str(nearest_existing_parent(Path(scratch))): "scratch",
    }
    for label, job in jobs.items():
        if isinstance(job, TrainJob) and job.program == "command":
            words = re.findall(r"[^\s'\"=;|&<>]+", job.options["command"])
            paths |= {word: f"{label}.command" for word in words if os.path.exists(word)}
    return paths
