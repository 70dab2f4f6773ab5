"""All checks of a plan, in the order in which a user would look for a mistake."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError

from jaxway.config.containers import Container
from jaxway.config.jobs import Allocation, Config, Placement, PullJob, SubmittedJob, TrainJob
from jaxway.config.site import Site
from jaxway.container.verify import read_record
from jaxway.launch import PULL_MINUTES
from jaxway.preflight.account import check_account
from jaxway.preflight.container import (
    check_apptainer,
    check_image,
    check_own_sifs,
    find_shared,
)
from jaxway.preflight.data import check_data
from jaxway.preflight.disk_space import Download, check_disk_space
from jaxway.preflight.finding import FAIL, PASS, Finding, Findings, failure, unchecked
from jaxway.preflight.folders import check_folders
from jaxway.preflight.home import check_home_quota
from jaxway.preflight.memory import check_memory
from jaxway.preflight.nodes import check_nodes
from jaxway.preflight.origin import check_origins
from jaxway.preflight.partition import check_partition
from jaxway.preflight.queue import check_queue
from jaxway.preflight.shared_fs import check_shared_fs
from jaxway.preflight.visible import check_visible, used_paths
from jaxway.slurm import accounting

Jobs = Mapping[str, SubmittedJob]  # by label, as in the configuration: train.small


@dataclass(frozen=True)
class Plan:
    """What a run is going to do."""

    config: Config
    site: Site
    jobs: Jobs
    pulled: Container | None  # None: jobs run without a container
    container: Container | None  # that, with the configured packages
    pulls: bool = False  # the image is going to be pulled, whether it is there or not
    retries: int = 0  # how often a failed job is submitted again
    start: Sequence[str] = ()  # starts a command in the container on this node

    @property
    def trainings(self) -> dict[str, TrainJob]:
        """Those whose data are prepared here, by label."""
        jobs = self.jobs.items()
        return {label: job for label, job in jobs if isinstance(job, TrainJob) and job.data}

    @property
    def in_slurm(self) -> Jobs:
        """Jobs that Slurm gets: with them those that make containers, where this node may not."""
        partition = self.site.pull_partition
        if not partition or not folder_of_new_container(self):
            return self.jobs
        names = ("pull", "add_packages") if self.config.packages else ("pull",)
        placement = Placement(1, 0, 1, PULL_MINUTES, partition)
        return {**dict.fromkeys(names, PullJob(placement)), **self.jobs}

    @property
    def image(self) -> str | None:
        """Digest of the container in which the jobs are going to run, as far as it is known."""
        if not self.container or self.pulls:
            return None
        record = read_record(Path(self.container.output))
        return record.identity.removeprefix("sha256:") if record else None


def labelled_jobs(
    config: Config, smoke_test: bool, trainings: Iterable[str], allocations: Iterable[str]
) -> dict[str, SubmittedJob]:
    """Jobs by label: the smoke test, and trainings and allocations of these names."""
    jobs: dict[str, SubmittedJob] = {"smoke_test": config.smoke_test} if smoke_test else {}
    jobs |= {f"train.{name}": config.train[name] for name in sorted(trainings)}
    for name in sorted(allocations):
        allocation = config.allocations[name]
        where = f" on {name}" if allocation.placement.node else ""
        jobs[f"benchmark.{allocation.benchmarks[0]}{where}"] = allocation
    return jobs


def all_jobs(config: Config) -> dict[str, SubmittedJob]:
    """All jobs of the configuration, by label."""
    return labelled_jobs(config, True, config.train, config.allocations)


def run_preflight(plan: Plan) -> list[Finding]:
    """All findings. What depends on a check that failed is not checked."""
    findings: list[Finding] = []
    download = None
    if plan.pulled and plan.container:
        if here := not plan.site.pull_partition:
            findings += run_check("apptainer", check_apptainer)
        image, shared = plan.config.image, Path(plan.site.sif)
        size, finding = check_image(image, shared, plan.pulled, plan.container, plan.pulls)
        findings.append(finding._replace(subject="image"))
        allocations = [job for job in plan.jobs.values() if isinstance(job, Allocation)]
        findings += run_check("image", check_own_sifs, plan.config.own_sifs(allocations))
        there = os.path.exists(plan.container.output) and not plan.pulls
        if here and plan.start and plan.jobs and there and finding.status is PASS:
            used = used_paths(plan.jobs, plan.site.scratch)
            findings += run_check("files", check_visible, plan.start, used)
        if size:
            tmpdir = Path(plan.config.tmpdir) if plan.config.tmpdir else None
            download = Download(shared, size, tmpdir)
    if plan.in_slurm and plan.site.launcher:
        findings += run_slurm_checks(plan)
    findings += run_check("folders", check_folders, plan.site, folder_of_new_container(plan))
    trainings = plan.trainings
    space = (plan.site, trainings.values(), plan.image, download)
    findings += run_check("disk space", check_disk_space, *space)
    findings += run_check("data", check_data, trainings)
    findings += run_check("from", check_origins, trainings, plan.config.train)
    findings += run_check("memory", check_memory, plan.config, plan.site, plan.jobs)
    if plan.jobs:
        findings += run_check("shared", check_shared_fs, plan.site.shared)
        if plan.site.small_home:
            findings += run_check("home", check_home_quota, plan.config.environment)
    return findings


def run_slurm_checks(plan: Plan) -> list[Finding]:
    """Findings from Slurm. It is not asked twice for what it refuses."""
    account, in_slurm, findings = plan.config.account, plan.in_slurm, []
    if account:
        hours = accounting.node_hours(in_slurm.values(), plan.retries)
        findings += run_check("account", check_account, account, hours, plan.site)
    may_charge = not any(finding.status is FAIL for finding in findings)
    partitions = dict.fromkeys(job.placement.partition for job in in_slurm.values())
    for name in partitions:
        jobs = {k: job for k, job in in_slurm.items() if job.placement.partition == name}
        found = run_check("partition", check_partition, name, jobs, account)
        findings += found
        if may_charge and all(finding.status is PASS for finding in found):
            findings += run_check("queue", check_queue, jobs, account)
    nodes = [job.placement.node for job in in_slurm.values() if job.placement.node]
    return findings + run_check("nodes", check_nodes, nodes)


def folder_of_new_container(plan: Plan) -> Path | None:
    """The folder where a container is going to be made; None, if none is."""
    containers = [each for each in (plan.pulled, plan.container) if each]
    if all(os.path.exists(each.output) for each in containers) and not plan.pulls:
        return None
    shared = Path(plan.site.sif)
    if containers[0] == containers[-1] and find_shared(plan.config.image, shared, containers[0]):
        return None
    return shared.parent


def run_check(subject: str, check: Callable[..., Findings], *arguments: Any) -> list[Finding]:
    """What a check finds. One that raises an exception stops nothing; what it had found counts."""
    findings: list[Finding] = []
    try:
        for finding in check(*arguments):
            findings.append(finding)
    except UserError as error:
        findings.append(failure(error.code, str(error)))
    except Exception as error:
        findings.append(unchecked(error))
    return [finding._replace(subject=subject) for finding in findings]


def summary(plan: Plan, findings: list[Finding], complete: bool) -> list[str]:
    """Findings and estimated cost, in lines; only what a user should know, or ``complete``."""
    lines = [str(each) for each in findings if complete or each.status is not PASS]
    if plan.site.launcher:
        cores = plan.site.cores_per_node
        costs = accounting.estimate(plan.in_slurm, plan.retries, cores)
        lines += [f"{'':5}{'cost':12}{line}" for line in (costs if complete else costs[-1:])]
    return lines


def require_success(findings: list[Finding]) -> None:
    """Raise a UserError if a check has failed."""
    if any(finding.status is FAIL for finding in findings):
        raise UserError(
            "JW500",
            "the plan cannot run, see FAIL above; nothing was submitted (if a check is "
            "wrong, run snakemake with `--config preflight=False`)",
        )
