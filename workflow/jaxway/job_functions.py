"""What Snakemake asks of a job by its wildcards. Knows nothing of Snakemake."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from jaxway_shared.errors import with_code
from jaxway_shared.identity import program_content
from jaxway_shared.training import METRICS, SUMMARY

from jaxway.config.containers import digest_path, target
from jaxway.config.jobs import (
    BYTE_TOKENIZERS,
    Allocation,
    BenchmarkJob,
    SmokeTestJob,
    SubmittedJob,
    TrainJob,
    short_hash,
)
from jaxway.config.schema import nearest
from jaxway.data.find import fingerprint
from jaxway.launch import Launch, command_line, results_folder, state_link

REPORT = "results/report.html"
T = TypeVar("T")
PerJob: TypeAlias = T | Callable[[Any], T]


def no_container(wildcards: object) -> None:
    """The container of a step on the login node."""


@dataclass(frozen=True)
class JobFunctions:
    """Functions of wildcards: jobs, and what follows from one."""

    launch: Launch

    def smoke_test(self, wildcards: Any) -> SmokeTestJob:
        return self.launch.config.smoke_test

    def training(self, wildcards: Any) -> TrainJob:
        return find_job(self.launch.config.train, wildcards.name)

    def allocation(self, wildcards: Any) -> Allocation:
        return find_job(self.launch.config.allocations, wildcards.name)

    def benchmarks(self, wildcards: Any) -> list[BenchmarkJob]:
        """Those of an allocation."""
        names = self.allocation(wildcards).benchmarks
        return [self.launch.config.benchmark[name] for name in names]

    # ------------------------------------------------------------------------ inputs and parameters

    def ready(self) -> PerJob[str | list[str]]:
        """File that says that container, nodes and a training's data are ready."""
        jobs = self.launch.config.train
        files: dict[str, str | list[str]] = {
            name: f"results/data/.{job.data.id if job.data else 'none'}.ready"
            for name, job in jobs.items()
        }
        return by_name(files, [])

    def origins(self) -> PerJob[str | list[str]]:
        """Result of the training at whose checkpoint another one begins; none, if none does."""
        jobs = self.launch.config.train
        results: dict[str, str | list[str]] = {
            name: f"{results_folder(run)}/{SUMMARY}" if (run := job.origin) and run in jobs else []
            for name, job in jobs.items()
        }
        return by_name(results, [])

    def summaries(self, wildcards: Any) -> list[str]:
        """Of all trainings. Of a list, in place of a function, Snakemake hashes all for each."""
        return [f"{results_folder(name)}/{SUMMARY}" for name in self.launch.config.train]

    def deleted_metrics(self) -> list[str]:
        """Those of trainings whose summary is there."""
        folders = [results_folder(name) for name in self.launch.config.train]
        finished = [folder for folder in folders if os.path.exists(f"{folder}/{SUMMARY}")]
        metrics = (f"{folder}/{METRICS}" for folder in finished)
        return [file for file in metrics if not os.path.exists(file)]

    def deleted_results(self, wildcards: Any) -> list[str]:
        """Files of trainings that are gone: those of which others were made before are not made
        again unless a rule names them. It names no more, since each takes time to plan."""
        summaries = self.summaries(wildcards) if os.path.exists(REPORT) else []
        gone = [file for file in summaries if not os.path.exists(file)]
        return gone + self.deleted_metrics()

    def state_link(self, wildcards: Any) -> str:
        return state_link(wildcards.name)

    def data_files(self, wildcards: Any) -> str:
        """What changes with the files of data, which are many: Snakemake does not know of them."""
        data = self.launch.config.data[wildcards.data]
        tokenizer = [] if data.tokenizer in BYTE_TOKENIZERS else [data.tokenizer]
        return fingerprint([*data.entries, *tokenizer])

    def programs(self) -> PerJob[str]:
        """What changes with the files of a training's program."""
        jobs = self.launch.config.train
        path = self.launch.config.environment.get("PYTHONPATH", "")
        programs = {
            name: (
                job.program,
                job.options.get("command"),
                job.environment.get("PYTHONPATH", path),
            )
            for name, job in jobs.items()
        }
        contents = {each: short_hash(program_content(*each)) for each in {*programs.values()}}
        return by_name({name: contents[each] for name, each in programs.items()}, "")

    def max_jobs(self) -> PerJob[int]:
        """Jobs of a training, at most."""
        return by_name({name: job.max_jobs for name, job in self.launch.config.train.items()}, 1)

    def trainings_per_node(self) -> PerJob[int]:
        """Trainings that share a node."""
        jobs = self.launch.config.train
        return by_name({name: job.placement.trainings_per_node for name, job in jobs.items()}, 1)

    def train_command(self, wildcards: Any) -> str:
        return command_line(self.launch.train(self.training(wildcards)))

    def benchmark_programs(self, wildcards: Any) -> list[Path]:
        names = {job.program for job in self.benchmarks(wildcards)}
        return [self.launch.script(f"benchmark_{name}") for name in sorted(names)]

    def benchmark_digests(self, wildcards: Any) -> list[str]:
        """Of the containers that benchmarks name themselves, and which a pull leaves."""
        sifs = self.launch.config.own_sifs([self.allocation(wildcards)])
        return sorted({str(digest_path(target(Path(sif)))) for sif in sifs})

    def plan(self, wildcards: Any) -> dict[str, Any]:
        return self.launch.plan(self.allocation(wildcards)).to_json()

    # ----------------------------------------------------------------------------- where a job runs

    def threads_of(self, jobs: Mapping[str, SubmittedJob]) -> PerJob[int]:
        return by_name({name: self.launch.threads(job.placement) for name, job in jobs.items()}, 1)

    def resources_of(self, jobs: Mapping[str, SubmittedJob]) -> dict[str, PerJob[str | int | None]]:
        found = {name: self.launch.resources(job.placement) for name, job in jobs.items()}
        resources = self.launch.resources(self.launch.config.smoke_test.placement)
        return {
            resource: by_name({name: each[resource] for name, each in found.items()}, value)
            for resource, value in resources.items()
        }


def by_name(values: Mapping[str, T], default: T) -> PerJob[T]:
    """What a job's wildcard `name` selects: a function, or the one value that all jobs share.

    Snakemake inspects each function for each job, which takes much of the planning of a sweep.
    """
    first = next(iter(values.values()), default)
    if all(value == first for value in values.values()):
        return first
    return lambda wildcards: find_job(values, wildcards.name)


def find_job(jobs: Mapping[str, T], name: str) -> T:
    """The job of this name; ends the program with a sentence where there is none."""
    if name not in jobs:
        sys.exit(with_code("JW006", f"no job is named {name}; {nearest(name, [*jobs])}"))
    return jobs[name]
