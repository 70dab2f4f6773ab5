"""The queue: whether Slurm would take each kind of job, and when that could start."""

import re
from collections.abc import Mapping
from datetime import datetime

from jaxway.config.jobs import SubmittedJob
from jaxway.launch import slurm_options
from jaxway.preflight.finding import Findings, and_more, failure, passed, warning
from jaxway.slurm.commands import (
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    UNREACHABLE_RE,
    error_message,
    run_query,
)

# What Slurm says of jobs that it takes but cannot start now.
TEMPORARY_RE = re.compile("not available|are busy|maintenance|is down|not responding")


def check_queue(jobs: Mapping[str, SubmittedJob], account: str | None) -> Findings:
    """Nothing is submitted. Jobs on a node by its name are left to check_nodes()."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for label, job in jobs.items():
        if not job.placement.node:
            options = slurm_options(job.placement, account)
            kinds.setdefault(tuple(options), []).append(label)
    for kind, labels in kinds.items():
        who = and_more(labels)
        result = run_query("sbatch", "--test-only", *kind, "--wrap=true")
        message = re.sub(r".*(error|failure): ", "", error_message(result))
        no_answer = result.returncode in (EXIT_TIMEOUT, EXIT_NOT_FOUND)
        if no_answer or UNREACHABLE_RE.search(message):
            yield warning(f"{who}: Slurm did not report a start: {message}")
            return
        if result.returncode and TEMPORARY_RE.search(message):
            yield warning(f"{who}: Slurm did not report a start: {message}")
        elif result.returncode:
            # No job here must be on a node of this name, so it is one to leave out.
            key = ": exclude" if "Invalid node name" in message else ""
            yield failure("JW506", f"{who}{key}: Slurm would refuse it: {message}")
        elif start := re.search(r"to start at (\S+)", result.stderr):
            yield passed(f"{who} could start {in_words(datetime.fromisoformat(start[1]))}")


def in_words(start: datetime) -> str:
    soon = (start - datetime.now()).total_seconds() < 60
    return "now" if soon else str(start)
