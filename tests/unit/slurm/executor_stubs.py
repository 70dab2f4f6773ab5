"""Stubs of Snakemake for the executor, and of Slurm's commands; conftest.py starts it with them."""

import threading
from types import SimpleNamespace
from typing import Any

from jaxway.slurm.executor import Executor

SQUEUE = """
case "$*" in *--name=*) ;; *) exit;; esac
[ -e jobs ] && cat jobs
true
"""
SBATCH = """
echo "$@" "$(sed 1d)" >> sbatch.called
while [ "$1" != --job-name ]; do shift; done
id=$(($(cat jobs 2> /dev/null | wc -l) + 7))
echo "$id|$2|$(cat state)|jrc0101" >> jobs
echo $id
"""


class Scheduler:
    """What is reported to Snakemake."""

    _local_executor = None

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.ended = threading.Event()

    def submit_callback(self, job: Any) -> None:
        self.reports.append("submitted")

    def finish_callback(self, job: Any) -> None:
        self.end("finished")

    def error_callback(self, job: Any) -> None:
        self.end("failed")

    def executor_error_callback(self, error: Exception) -> None:
        self.end(f"executor: {error}")

    def end(self, how: str) -> None:
        self.reports.append(how)
        self.ended.set()


class Resources(dict[str, Any]):
    """Resources of a job of Snakemake."""

    slurm_extra = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def make_job(name: str = "evaluate") -> Any:
    """A job of Snakemake without inputs, outputs and resources."""
    return SimpleNamespace(
        name=name,
        resources=Resources(),
        wildcards=[],
        output=[],
        log=[f"logs/{name}.log"],
        threads=1,
        is_group=lambda: False,
        log_info=lambda: None,
        log_error=lambda *args, **kwargs: None,
        register=lambda external_jobid: None,
    )


class Wildcards(list[str]):
    """Wildcards of a training."""

    @property
    def name(self) -> str:
        return self[0]


def make_training(name: str = "small", **resources: Any) -> Any:
    """A job of a training whose state is the folder `state-<name>`."""
    job = make_job("train_run")
    job.wildcards, job.log = Wildcards([name]), [f"logs/train/{name}.log"]
    job.resources |= {"training_state": f"state-{name}", "max_jobs": 9} | resources
    return job


class StubbedExecutor(Executor):
    """The executor, whose jobs run nothing."""

    def format_job_exec(self, job: Any) -> str:
        return "true"


def run(executor: Executor, job: Any) -> list[str]:
    """What is reported to Snakemake of a job, when that has ended."""
    executor.run_jobs([job])
    assert executor.workflow.scheduler.ended.wait(10)
    reports: list[str] = executor.workflow.scheduler.reports
    return reports
