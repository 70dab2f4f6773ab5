"""What is known of each job of a run, put together from Slurm's queue and from files."""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxway import run_lock
from jaxway.config.jobs import Config
from jaxway.config.site import Site
from jaxway.monitor.logs import (
    STALE_AFTER_S,
    last_log_line,
    modified,
    running_state,
    training_progress,
)
from jaxway.monitor.slurm_queue import (
    Queue,
    QueuedJob,
    pending_text,
    running_text,
    short_time,
)

STEPS = {"train_run": "train", "benchmark_run": "benchmark", "smoke_test": "smoke_test"}
RESULTS = {  # by log: what Snakemake deletes before a job, and the job leaves when it is done
    "smoke_test": "results/smoke_test.json",
    "prepare_data": "results/data/{}.json",
    "ready": "results/data/.{}.ready",
    "train": "results/train/{}/summary.json",
    "benchmark": "results/benchmark/{}.json",
    "record": "results/benchmark/.{}.recorded",
    "verdict": "results/.benchmarks_passed",
    "node_check": "results/node_check.json",
    "cost": "results/cost.json",
    "report": "results/report.html",
}


class JobStatus(NamedTuple):
    """What is known of a job. ``stage`` changes when something new begins; empty, without Slurm."""

    key: str
    label: str
    stage: str
    state: str
    progress: str  # of a training
    last_log_line: str
    page: str = ""  # the site's own, of a job that runs

    @property
    def is_pending(self) -> bool:
        return self.stage.startswith("pending")


def job_statuses(config: Config, site: Site, queue: Queue) -> Iterator[JobStatus]:
    """Each job of the run: those without Slurm by their logs, then Slurm's."""
    started = run_lock.started() or math.inf
    for log in sorted(Path("logs").rglob("*.log")):
        step, name = log.parts[1].removesuffix(".log"), log.stem if len(log.parts) > 2 else ""
        in_slurm = site.launcher and step in STEPS.values()
        if not in_slurm and (modified(log) or 0) >= started and not is_done(step, name, log):
            label = f"{step} {name}".strip()
            progress = progress_of(step, name, "", config, site)
            yield JobStatus(label, label, "", "", progress, last_log_line(log))
    for job in queue.jobs:
        yield queued_status(job, queue.positions.get(job.id, ""), config, site)


def is_done(step: str, name: str, log: Path) -> bool:
    """Whether a job has left its result or, where that is not known, has had no output for long."""
    if result := RESULTS.get(step):
        return Path(result.format(name)).exists()
    return time.time() - (modified(log) or 0) > STALE_AFTER_S


def queued_status(job: QueuedJob, position: str, config: Config, site: Site) -> JobStatus:
    """What is known of a job that Slurm lists."""
    step, name = step_and_name(job.comment)
    label = f"{step} {name}".strip()
    key = f"{job.id} {name}"  # several may share a job
    if job.is_pending:
        stage = "pending, start known" if short_time(job.start) else "pending"
        return JobStatus(key, label, stage, pending_text(job, position), "", "")
    stage = job.state if job.state == "RUNNING" else ""
    log = Path("logs", step, f"{name}.log") if name else Path("logs", f"{step}.log")
    progress = progress_of(step, name, job.id, config, site)
    page = site.page_of(job.id)
    return JobStatus(key, label, stage, running_text(job), progress, last_log_line(log), page)


def step_and_name(comment: str) -> tuple[str, str]:
    """Step and name of a job from the comment by which it was submitted."""
    rule, _, name = comment.removeprefix("rule_").partition("_wildcards_")
    # In a module of somebody's own workflow, rules may have a prefix.
    return next((step for end, step in STEPS.items() if rule.endswith(end)), rule), name


def progress_of(step: str, name: str, job: str, config: Config, site: Site) -> str:
    """Progress of a training; empty, if the job is none or has not begun."""
    state = running_state(site.scratch, name, job) if step == "train" else None
    if state is None:
        return ""
    steps = config.train[name].options.get("steps") if name in config.train else None
    return training_progress(state, steps)


def status_lines(statuses: Iterable[JobStatus], queue: Queue) -> list[tuple[str, str]]:
    """Label and text of each job; the end of the text may be cut off."""
    lines = []
    for status in statuses:
        output = "" if status.progress else status.last_log_line
        parts = [status.progress, status.state, output, status.page]
        lines.append((status.label, "; ".join(filter(None, parts))))
    if queue.problem:
        lines.append(("Slurm", queue.problem))
    return lines or [("", "no job is running or pending")]
