"""What a plan may cost, and what its jobs have cost, by the site's rule: nodes x time x cores.

Slurm's accounting is asked for the jobs in the journal of this folder's executor.
"""

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jaxway_shared import training, versioned
from jaxway_shared.errors import UserError

from jaxway.config.jobs import SubmittedJob, TrainJob
from jaxway.config.site import Site, read_site
from jaxway.slurm.commands import error_message, run_query
from jaxway.slurm.journal import NOT_STARTED, Journal, Submission
from jaxway.slurm.queue import ENDED, JOBS_PER_QUERY

SCHEMA_VERSION = 3
FIELDS = "JobIDRaw,State,Submit,Start,ElapsedRaw,AllocNodes,TimelimitRaw"
SACCT_TIMEOUT_S = 30
ACCOUNTING_TIMEOUT_S = 10  # until Slurm must have recorded a job's end
POLL_INTERVAL_S = 0.5


# ---------------------------------------------------------------------------------------- before


def most_jobs(job: SubmittedJob, retries: int) -> int:
    """How often a job may be submitted. A training's next ones do not count as retries."""
    return job.max_jobs if isinstance(job, TrainJob) else 1 + retries


def node_hours(jobs: Iterable[SubmittedJob], retries: int) -> float:
    """The most that jobs can take: all of their time, as often as they may be submitted.

    Those that share nodes fill all parts of them.
    """
    alike = Counter((job.placement, most_jobs(job, retries)) for job in jobs)
    return sum(
        math.ceil(count / where.parts) * where.nodes * where.walltime * most / 60
        for (where, most), count in alike.items()
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def in_words(hours: float, cores_per_node: int | None) -> str:
    """Node-hours, and core-hours where a node's number of cores is known."""
    cores = f" = {number(hours * cores_per_node)} core-h" if cores_per_node else ""
    return f"{number(hours)} node-h{cores}"


def number(value: float) -> str:
    """A number with four digits, or more before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def estimate(
    jobs: Mapping[str, SubmittedJob], retries: int, cores_per_node: int | None
) -> list[str]:
    """What jobs may cost, in a line for each kind of them and one for all."""
    lines = []
    for kind in dict.fromkeys(label.split(".")[0] for label in jobs):
        same_kind = [job for label, job in jobs.items() if label.split(".")[0] == kind]
        most = sum(most_jobs(job, retries) for job in same_kind)
        fewest = f"{len(same_kind)} to " if most > len(same_kind) else ""
        largest = max(job.placement.nodes for job in same_kind)
        longest = max(job.placement.walltime for job in same_kind)
        each = f"{counted(largest, 'node')} and {longest} minutes at most"
        where = max((job.placement for job in same_kind), key=lambda x: x.trainings_per_node)
        shares = where.trainings_per_node > 1
        each += f", up to {where.trainings_per_node} on one node" if shares else ""
        each += f", {where.parts} at a time" if where.turns > 1 else ""
        total = in_words(node_hours(same_kind, retries), cores_per_node)
        lines.append(f"{kind}: {fewest}{counted(most, 'job')}, each {each}: {total}")
    return [
        *lines,
        f"at most {in_words(node_hours(jobs.values(), retries), cores_per_node)} in all",
    ]


# ----------------------------------------------------------------------------------------- after


@dataclass(frozen=True)
class JobUsage:
    """What a job has used, as Slurm has recorded it."""

    job: str  # Slurm's id
    name: str  # rule and wildcards: train_run small
    run: str  # of Snakemake, the last that waited for it
    state: str
    submitted: str  # time, ISO 8601
    queue_seconds: float
    seconds: int  # elapsed
    limit: int | None  # seconds that it might have had; None, no limit
    nodes: int
    sharing: int  # trainings that shared the nodes; the cost is divided by them
    no_progress: bool  # it failed, and brought no training further

    @property
    def node_hours(self) -> float:
        return self.nodes * self.seconds / 3600 / self.sharing


@dataclass(frozen=True)
class Cost:
    """Content of cost.json."""

    cores_per_node: int | None
    jobs: tuple[JobUsage, ...]  # all that were submitted from this folder, oldest first
    problem: str | None  # why Slurm did not report them; None, it has

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return versioned.encode(self, SCHEMA_VERSION)


def read_cost(path: Path) -> Cost:
    """The cost in a file. UserError where the file is none; OSError where there is no file."""
    return versioned.read_as(Cost, path, "cost", SCHEMA_VERSION)


def jobs_with_progress(scratch: Path) -> set[tuple[str, str]]:
    """Ids of jobs and names of the trainings that they brought further, whatever their end."""
    jobs = set()
    for folder in scratch.glob("train/*/"):
        try:
            segments = training.read_segments(folder)
        except (OSError, UserError):  # not of ours
            continue
        name = folder.name.rpartition("-")[0]
        jobs |= {(s.provenance.job or "", name) for s in segments if s.last_step >= s.first_step}
    return jobs


def seconds_between(start: str, end: str) -> float:
    """Seconds between two times of Slurm; 0, if one of them has not come."""
    try:
        return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    except ValueError:  # Unknown, None
        return 0


def query_accounting(submissions: Iterable[Submission], scratch: Path) -> list[JobUsage]:
    """What jobs have used, oldest first. UserError where Slurm did not report it."""
    by_id = defaultdict(list)
    for each in submissions:
        if each.id and each.end != NOT_STARTED:
            by_id[each.id].append(each)
    ids = sorted(by_id, key=int)
    lines: list[str] = []
    for i in range(0, len(ids), JOBS_PER_QUERY):
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
        command += [f"--format={FIELDS}", f"--jobs={','.join(ids[i : i + JOBS_PER_QUERY])}"]
        result = run_query(*command, timeout_s=SACCT_TIMEOUT_S)
        if result.returncode:
            reason = error_message(result)
            raise UserError("JW210", f"Slurm did not report what jobs have used ({reason})")
        lines += result.stdout.splitlines()
    progress, usages = jobs_with_progress(scratch), []
    for line in lines:
        job, state, submitted, start, elapsed, nodes, limit = line.split("|")
        state = state.split()[0]  # of `CANCELLED by 1000`
        usages += [
            JobUsage(
                job=job,
                name=each.label,
                run=each.run,
                state=state,
                submitted=submitted,
                queue_seconds=seconds_between(submitted, start),
                seconds=int(elapsed),
                limit=60 * int(limit) if limit.isdecimal() else None,
                nodes=int(nodes),
                sharing=len(by_id[job]),
                # Of those that share a job, some may have succeeded.
                no_progress="COMPLETED" not in (state, each.end)
                and state in ENDED
                and (job, each.label.partition(" ")[2]) not in progress,
            )
            for each in by_id[job]
        ]
    return usages


def wait_for_accounting(submissions: Collection[Submission], scratch: Path) -> list[JobUsage]:
    """As query_accounting(), when all ends are recorded: that takes Slurm a moment."""
    deadline = time.monotonic() + ACCOUNTING_TIMEOUT_S
    while True:
        usages = query_accounting(submissions, scratch)
        if time.monotonic() > deadline or all(usage.state in ENDED for usage in usages):
            return usages
        time.sleep(POLL_INTERVAL_S)


def summary(usages: list[JobUsage], site: Site) -> str:
    """What jobs have cost, in one line, and a line for each that failed without progress."""
    cores_per_node = site.cores_per_node
    longest = timedelta(seconds=max(usage.queue_seconds for usage in usages))
    total = in_words(sum(usage.node_hours for usage in usages), cores_per_node)
    jobs = counted(len({usage.job for usage in usages}), "job")
    lines = [f"used: {total} by {jobs}; longest wait: {longest}"]
    lines += [
        f"no progress: {in_words(usage.node_hours, cores_per_node)} by {usage.name}, job "
        f"{usage.job}: {', '.join(filter(None, [usage.state, site.page_of(usage.job)]))}"
        for usage in usages
        if usage.no_progress
    ]
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `jaxway cost`."""
    parser.add_argument("--site", type=Path, required=True, help="description of the site")
    parser.add_argument("--scratch", type=Path, required=True, help="with the training states")
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")


def run(args: argparse.Namespace) -> None:
    """Write what the jobs of this folder have cost, or why that is not known."""
    jobs: list[JobUsage] = []
    problem = None
    try:
        jobs = wait_for_accounting(Journal().read().values(), args.scratch)
    except UserError as error:
        problem = error.line()
    cost = Cost(read_site(args.site).cores_per_node, tuple(jobs), problem)
    args.out.write_text(json.dumps(cost.to_json(), indent=1) + "\n")
