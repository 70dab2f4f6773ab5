"""The report's part about cost: node-hours of Slurm's jobs, by what they did and by run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxway.slurm.accounting import Cost, JobUsage


@dataclass(frozen=True)
class CostRow:
    """Some jobs together."""

    name: str
    jobs: int
    node_hours: float
    no_progress: float  # node-hours of jobs that failed without progress
    queue_seconds: float  # the longest


@dataclass(frozen=True)
class CostTable:
    """What the jobs cost; without a total, there were none."""

    problem: str | None
    cores_per_node: int | None
    by_job: list[CostRow]
    by_run: list[CostRow]
    total: CostRow | None


def cost_row(name: str, jobs: Sequence[JobUsage]) -> CostRow:
    """Add up some jobs."""
    return CostRow(
        name=name,
        jobs=len({job.job for job in jobs}),
        node_hours=sum(job.node_hours for job in jobs),
        no_progress=sum(job.node_hours for job in jobs if job.no_progress),
        queue_seconds=max(job.queue_seconds for job in jobs),
    )


def cost_table(cost: Cost) -> CostTable:
    """The tables of cost.json."""
    by_name: dict[str, list[JobUsage]] = defaultdict(list)
    by_run: dict[str, list[JobUsage]] = defaultdict(list)
    for job in cost.jobs:
        by_name[job.name].append(job)
        by_run[job.run].append(job)
    return CostTable(
        problem=cost.problem,
        cores_per_node=cost.cores_per_node,
        by_job=[cost_row(name, jobs) for name, jobs in by_name.items()],
        by_run=[cost_row(jobs[0].submitted.replace("T", " "), jobs) for jobs in by_run.values()],
        total=cost_row("all", cost.jobs) if cost.jobs else None,
    )
