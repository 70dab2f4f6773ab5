"""What happens around a run: before its first job and after its last.

The Snakefile's hooks call it. Of Snakemake it knows the jobs.
"""

import atexit
import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jaxway_shared.errors import UserError, parse
from jaxway_shared.training import NOT_AGAIN, TrainingState

from jaxway import interrupt
from jaxway.config.containers import LOCK_FOLDER, target
from jaxway.config.jobs import Allocation, Config, Placement, SmokeTestJob, TrainJob
from jaxway.container import store, verify
from jaxway.launch import Launch, Words
from jaxway.monitor.logs import modified, tail
from jaxway.slurm import accounting
from jaxway.slurm.cancellation import report_open
from jaxway.slurm.journal import RUN_ID, Journal
from jaxway.slurm.outage import report

# Some functions import what they need: that takes a while, and Snakemake in jobs does without.

T = TypeVar("T", SmokeTestJob, TrainJob, Allocation)
USE_CONTAINER = ("add_packages", "verify_container", "smoke_test", "train_run", "benchmark_run")
# Whose jobs matter here.
RULES = (*USE_CONTAINER, "pull", "prepare_data", "compare_nodes", "preflight")
# Resources by which Snakemake's Slurm plugin is asked for more, and the options of sbatch.
ASKED = {"slurm_account": "account", "qos": "qos", "constraint": "constraint"}
CHECKED: list["Run"] = []  # at the end of a dry-run of this process


class Job(Protocol):
    """A job of Snakemake that is going to run."""

    rule: Any
    wildcards: Any
    resources: Any
    input: Any
    output: Any
    log: Any


@dataclass(frozen=True)
class Planned:
    """What Snakemake is going to do."""

    jobs: Mapping[str, list[Job]]  # by the name of the rule in this workflow
    retries: int  # how often a failed job is submitted again

    @classmethod
    def of(cls, workflow: Any, rules: Any) -> "Planned":
        """What a Snakemake is going to do. Rules have other names where this is a module."""
        own = {getattr(rules, name).rule: name for name in RULES if rules.has(name)}
        jobs: dict[str, list[Job]] = {name: [] for name in RULES}
        for job in workflow.dag.needrun_jobs(exclude_finished=False):
            if job.rule in own:
                jobs[own[job.rule]].append(job)
        return cls(jobs, workflow.execution_settings.retries)


@dataclass
class Run:
    """A run of the workflow."""

    launch: Launch
    jaxway: Words  # the command of this checkout
    _background: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _node_checks: list[Job] = field(default_factory=list)
    _trainings: list[Job] = field(default_factory=list)
    _began: float = 0.0

    def start(self, workflow: Any, rules: Any) -> None:
        """Check and prepare all that the jobs need. Ends Snakemake where that fails."""
        from jaxway.monitor import reporter

        interrupt.install()
        self._began = time.time()
        try:
            self._check_executor(workflow.executor_plugin.name)
            planned = Planned.of(workflow, rules)
            self._node_checks = planned.jobs["compare_nodes"]
            self._trainings = planned.jobs["train_run"]
            self.preflight(planned, complete=bool(planned.jobs["preflight"]))
            self._restore_container(planned.jobs)
            self._restore_data(planned.jobs)
        except UserError as error:
            sys.exit(error.line())
        except KeyboardInterrupt:
            report(UserError("JW212", "interrupted; nothing was submitted").line())
            report_open(Journal())
            sys.exit(1)
        self._background.enter_context(
            reporter.report_in_background(self.launch.config, self.launch.site)
        )

    def end(self, success: bool) -> None:
        """Say what the run has cost, and where it failed, how to resume."""
        interrupt.only_answer()
        self._background.close()
        self._report_used_again()
        if not success:
            self._compare_finished_nodes()
            diverged = ", ".join(self._diverged())
            again = f"Training {diverged} would diverge again: change its options, then rerun."
            report(again if diverged else "Rerun the same command to resume.")
        if self.launch.site.launcher:
            interrupt.last_wait(self._report_cost)

    def preflight(self, planned: Planned, complete: bool) -> None:
        """Print what preflight finds and what jobs may cost; ``complete``: also what passes.

        UserError where a check fails, unless the configuration says that none counts.
        """
        from jaxway.preflight import plan

        jobs, launch = planned.jobs, self.launch
        if jobs["preflight"]:
            submitted = plan.all_jobs(launch.config)
        else:
            rules = ("train_run", "benchmark_run")
            names = ([job.wildcards.name for job in jobs[rule]] for rule in rules)
            config = with_asked_placements(launch.config, jobs)
            submitted = plan.labelled_jobs(config, bool(jobs["smoke_test"]), *names)
        pulls = bool(jobs["pull"])
        if not submitted and not pulls:
            return
        pulled, container = (launch.pulled, launch.container) if launch.contained else (None, None)
        start = launch.on_this_node() if container else ()
        whole = plan.Plan(
            launch.config, launch.site, submitted, pulled, container, pulls, planned.retries, start
        )
        findings = plan.run_preflight(whole)
        for line in plan.summary(whole, findings, complete):
            report(line)
        if launch.config.preflight:
            plan.require_success(findings)

    def _check_executor(self, name: str) -> None:
        """Refuse another executor than that of the site's profile: it would follow no rule of ours.

        One without Slurm may be Snakemake's own: a run without a profile has no other.
        """
        if self.launch.site.launcher and name != "jaxway":
            site = self.launch.site.name
            raise UserError("JW214", f"jobs of {site} need the executor jaxway, not {name}")

    def _restore_container(self, jobs: Mapping[str, list[Job]]) -> None:
        """Make again what is missing, and submit nothing into a container that has changed.

        What this run makes anew in any case need not be there or whole.
        """
        launch, image = self.launch, self.launch.config.image
        if not launch.contained or not any(jobs[rule] for rule in USE_CONTAINER):
            return
        makers = {"pull": (launch.pulled, launch.pull)}
        if launch.config.packages:
            if not launch.container.packages and store.is_locked(Path(launch.container.sif)):
                makers = {}  # jobs need nothing below it
            makers["add_packages"] = (launch.container, launch.add_packages)
        for rule, (container, words) in makers.items():
            if jobs[rule] or not Path(container.digest).exists():
                continue
            if not store.is_locked(Path(container.output)):
                lost = not os.path.exists(container.output)
                why = "is missing" if lost else "was made again"
                if launch.site.pull_partition:
                    again = f"`snakemake {rule} --forcerun {rule}` (with your --profile)"
                    raise UserError("JW209", f"{container.output} {why}: {again} submits its job")
                self._restore(container.output, words(), why)
            if problem := verify.find_problem(Path(container.sif), full=False, image=image):
                raise problem
            store.note_run(target(Path(container.output)), Path(container.output))
        self._check_own_sifs(jobs["benchmark_run"])

    def _check_own_sifs(self, benchmarks: Iterable[Job]) -> None:
        """The same for containers that benchmarks name, which no run makes."""
        config = self.launch.config
        for sif in config.own_sifs(config.allocations[job.wildcards.name] for job in benchmarks):
            if problem := verify.find_problem_of_own(sif):
                raise problem
            store.note_run(target(Path(sif)), LOCK_FOLDER.absolute())

    def _restore_data(self, jobs: Mapping[str, list[Job]]) -> None:
        """Prepare again what trainings of this run need, unless a job of it does."""
        from jaxway_shared.data_record import read_prepared

        needed = (self.launch.config.train[job.wildcards.name].data for job in jobs["train_run"])
        records = {data.record: data for data in needed if data}
        due = {job.output.record for job in jobs["prepare_data"]}
        for record, data in records.items():
            if record not in due and not read_prepared(Path(record)):
                words = [*self.launch.prepare_data(data), f"--out={record}"]
                self._restore(f"data of {record}", words)

    def _restore(self, what: str, words: Words, why: str = "is missing") -> None:
        """Make again what is missing, or take what others have made again in its place."""
        report(f"{what} {why}: restoring it")
        if subprocess.run([*self.jaxway, *words]).returncode:
            raise UserError("JW209", f"{what} could not be restored, see the error above")

    def _report_used_again(self) -> None:
        """Say which trainings had finished before, as their programs did."""
        for job in self._trainings:
            log = Path(job.log[0])
            last = "".join(tail(log)[-1:])
            if last.endswith(NOT_AGAIN) and (modified(log) or 0) >= self._began:
                report(f"Training {job.wildcards.name}: {last}.")

    def _diverged(self) -> Iterator[str]:
        """Trainings whose loss was not finite: another job would resume them, and end as well."""
        for job in self._trainings:
            with contextlib.suppress(OSError):
                state = TrainingState.find(Path(job.resources.training_state))
                error = parse(state.error or "") if state else None
                if error and error.code == "JW305":
                    yield job.wildcards.name

    def _compare_finished_nodes(self) -> None:
        """Compare the nodes whose jobs left a result, when others have not."""
        for job in self._node_checks:
            if not os.path.exists(job.output.result):
                finished = [file for file in job.input.results if os.path.exists(file)]
                words = [*self.launch.check_nodes(), f"--out={job.output.result}"]
                subprocess.run([*self.jaxway, *words, "--results", *finished])
                Path(job.output.result).unlink(missing_ok=True)

    def _report_cost(self) -> None:
        """Print what the jobs of this run have used."""
        try:
            submissions = [each for each in Journal().read().values() if each.run == RUN_ID]
            usages = accounting.wait_for_accounting(submissions, Path(self.launch.site.scratch))
        except UserError as error:
            report(error.line())
            return
        if usages:
            text = accounting.summary(usages, self.launch.site)
            report(text)


def check_at_exit_of_dry_run(run: Run, workflow: Any, rules: Any) -> None:
    """Print preflight's findings at the end of a dry-run, for which Snakemake has no hook."""

    def check() -> None:
        if workflow.dryrun and workflow.dag is not None:
            with contextlib.suppress(UserError):  # a dry-run fails for no check
                run.preflight(Planned.of(workflow, rules), complete=True)

    if not CHECKED:  # a module is read once more for each `use rule ... with`
        CHECKED.append(run)
        atexit.register(check)


def with_asked_placements(config: Config, jobs: Mapping[str, list[Job]]) -> Config:
    """The configuration with what options of Snakemake, such as --set-resources, change.

    They ask the same for all jobs of a rule with one placement, and are asked of the first of
    them: to work them out for each took a quarter of the time to plan a sweep.
    """

    def asked(configured: Mapping[str, T], rule: str) -> dict[str, T]:
        own = {job.wildcards.get("name", rule): job for job in jobs[rule]}
        found: dict[Placement, Placement] = {}
        result = {}
        for name, job in configured.items():
            old = job.placement
            if name in own and old not in found:
                found[old] = asked_placement(own[name], old, config.account)
            new = found[old] if name in own else old
            result[name] = job if new == old else replace(job, placement=new)
        return result

    return replace(
        config,
        smoke_test=asked({"smoke_test": config.smoke_test}, "smoke_test")["smoke_test"],
        train=asked(config.train, "train_run"),
        benchmark_allocations=asked(config.benchmark_allocations, "benchmark_run"),
        node_check_allocations=asked(config.node_check_allocations, "benchmark_run"),
    )


def asked_placement(job: Job, configured: Placement, account: str | None) -> Placement:
    """The placement that Snakemake asks for."""
    resource = job.resources.get
    gpus = re.fullmatch(r"gpu:(?:[\w.-]+:)?(\d+)", str(resource("gres")))
    options = [f"--{flag}={resource(key)}" for key, flag in ASKED.items() if resource(key)]
    options += shlex.split(resource("slurm_extra") or "")
    return replace(
        configured,
        nodes=resource("nodes", configured.nodes),
        gpus_per_node=int(gpus[1]) if gpus else configured.gpus_per_node,
        options=tuple(option for option in options if option != f"--account={account}"),
        walltime=resource("runtime", configured.walltime),
        partition=resource("slurm_partition", configured.partition),
    )
