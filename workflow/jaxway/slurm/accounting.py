"""What a plan may cost, and what its jobs have cost, by the site's rule: nodes x time x cores.

    python workflow/cost.py --logs=.snakemake/slurm_logs --site=... --scratch=... --out=cost.json

Slurm's accounting is asked for the jobs whose logs its executor has left in this folder.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from jaxway_shared.errors import UserError
from jaxway_shared.training import read_segments

from jaxway.config.jobs import SubmittedJob, TrainJob
from jaxway.slurm.commands import error_message, run_query

FIELDS = "JobIDRaw,JobName,State,Submit,Start,ElapsedRaw,AllocNodes,TimelimitRaw"
ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
PATIENCE = 10  # seconds until an end must have been booked
Job = dict[str, Any]


class CostError(Exception):
    """Slurm does not tell; the message is one sentence."""


# ---------------------------------------------------------------------------------------- before


def most_jobs(job: SubmittedJob, retries: int) -> int:
    """How often a job may be submitted. A training's next ones do not count as retries."""
    return job.max_jobs if isinstance(job, TrainJob) else 1 + retries


def node_hours(jobs: Iterable[SubmittedJob], retries: int) -> float:
    """The most that jobs can take: all of their time, as often as they may be submitted."""
    return sum(
        job.placement.nodes * job.placement.walltime * most_jobs(job, retries) / 60 for job in jobs
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def in_words(hours: float, cores_per_node: int | None) -> str:
    """Node-hours, and core-hours where a node's number of cores is known."""
    cores = f" = {number(hours * cores_per_node)} core-h" if cores_per_node else ""
    return f"{number(hours)} node-h{cores}"


def number(value: float) -> str:
    """A number with four digits, or more before the point."""
    return f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"


def foretold(
    jobs: Mapping[str, SubmittedJob], retries: int, cores_per_node: int | None
) -> list[str]:
    """What jobs may cost, in a line for each kind of them and one for all."""
    lines = []
    for kind in dict.fromkeys(label.split(".")[0] for label in jobs):
        mine = [job for label, job in jobs.items() if label.split(".")[0] == kind]
        most = sum(most_jobs(job, retries) for job in mine)
        fewest = f"{len(mine)} to " if most > len(mine) else ""
        largest = max(job.placement.nodes for job in mine)
        longest = max(job.placement.walltime for job in mine)
        each = f"{counted(largest, 'node')} and {longest} minutes at most"
        total = in_words(node_hours(mine, retries), cores_per_node)
        lines.append(f"{kind}: {fewest}{counted(most, 'job')}, each {each}: {total}")
    return [
        *lines,
        f"at most {in_words(node_hours(jobs.values(), retries), cores_per_node)} in all",
    ]


# ----------------------------------------------------------------------------------------- after


def useful(scratch: Path) -> set[str]:
    """Ids of the jobs that brought a training further, whatever their end."""
    jobs = set()
    for folder in scratch.glob("train/*"):
        with contextlib.suppress(OSError, UserError):  # another version's, or damaged
            for segment in read_segments(folder):
                if segment.last_step >= segment.first_step and segment.provenance.job:
                    jobs.add(segment.provenance.job)
    return jobs


def seconds_between(start: str, end: str) -> float:
    """Seconds between two times of Slurm; 0, if one of them has not come."""
    try:
        between = datetime.fromisoformat(end) - datetime.fromisoformat(start)
    except ValueError:  # Unknown, None
        return 0
    return between.total_seconds()


def label(log: Path) -> str:
    """Rule and wildcards of a job, by the path of its log: rule_train_run/small/12.log."""
    return " ".join(log.parent.parts).removeprefix("rule_")


def used(logs: Path, scratch: Path) -> list[Job]:
    """Each job that was submitted from this folder, oldest first, as Slurm has booked it.

    ``what`` it did, its ``run`` (Snakemake's, by Slurm's job name), ``state``, ``submitted``,
    ``waited``, ``seconds`` (elapsed), ``limit`` (seconds it might have had), ``nodes``, and whether
    it was ``wasted``: it failed, and brought no training further.
    """
    files = [log for log in logs.rglob("*.log") if log.stem.isdecimal()]
    names = {log.stem: label(log.relative_to(logs)) for log in files}
    if not names:
        return []
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
    command += [f"--format={FIELDS}", f"--jobs={','.join(sorted(names, key=int))}"]
    result = run_query(*command, timeout_s=30)
    if result.returncode:
        raise CostError(
            f"Slurm's accounting does not tell what jobs have used: {error_message(result)}"
        )
    advanced, jobs = useful(scratch), []
    for line in result.stdout.splitlines():
        job, run, state, submit, start, elapsed, nodes, limit = line.split("|")
        state = state.split()[0]  # CANCELLED by 1000
        jobs.append(
            {
                **{"job": job, "what": names[job], "run": run, "state": state},
                **{"submitted": submit, "waited": seconds_between(submit, start)},
                **{"seconds": int(elapsed), "nodes": int(nodes)},
                "limit": 60 * int(limit) if limit.isdecimal() else None,
                "wasted": state not in (*ACTIVE, "COMPLETED") and job not in advanced,
            }
        )
    return jobs


def booked(logs: Path, scratch: Path) -> list[Job]:
    """As used(), when all jobs that have ended are booked as such: that takes Slurm a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        jobs = used(logs, scratch)
        if time.monotonic() > deadline or not any(job["state"] in ACTIVE for job in jobs):
            return jobs
        time.sleep(0.5)


def hours(jobs: Iterable[Job]) -> float:
    """Node-hours that jobs have used."""
    return sum(job["nodes"] * job["seconds"] for job in jobs) / 3600


def told(jobs: list[Job], cores_per_node: int | None) -> str:
    """What jobs have cost, in one line, and a line for each that was wasted."""
    waited = [job["waited"] for job in jobs]
    longest = timedelta(seconds=max(waited))
    wasted = [job for job in jobs if job["wasted"]]
    total = in_words(hours(jobs), cores_per_node)
    lines = [f"used: {total} by {counted(len(jobs), 'job')}; the longest wait was {longest}"]
    lines += [
        f"wasted: {in_words(hours([job]), cores_per_node)} by {job['what']}, job {job['job']}: "
        f"{job['state']}"
        for job in wasted
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description="What the jobs of this folder have cost.")
    arguments.add_argument("--logs", type=Path, required=True, help="logs of Slurm's executor")
    arguments.add_argument("--site", type=Path, required=True, help="description of the site")
    arguments.add_argument("--scratch", type=Path, required=True, help="with the training states")
    arguments.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    args = arguments.parse_args()
    cores = yaml.safe_load(args.site.read_text()).get("cores_per_node")
    result: dict[str, Any] = {"cores_per_node": cores, "jobs": [], "problem": None}
    try:
        result["jobs"] = booked(args.logs, args.scratch)
    except CostError as error:
        result["problem"] = str(error)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
