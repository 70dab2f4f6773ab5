"""The configuration as objects: jobs, and where each of them runs."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from jaxway_shared.training import split_origin

Options = Mapping[str, Any]  # of a program, by the names that its OPTIONS declare
RAW = "raw"
BYTE_TOKENIZERS = ("bytes", RAW)  # tokens are bytes: of text, or of files of any kind


def short_hash(value: Any) -> str:
    """A name for a value that JSON can express, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Placement:
    """The nodes of a job, what it uses of them, and for how long."""

    nodes: int
    gpus_per_node: int
    processes_per_node: int
    walltime: int  # minutes
    partition: str | None  # None: Slurm's default
    node: str | None = None  # the one that it must be on, if that has a name
    options: tuple[str, ...] = ()  # of sbatch, beside these and the account
    trainings_per_node: int = 1  # that share the node, as one job of Slurm

    @property
    def processes(self) -> int:
        """JAX processes, on all nodes together."""
        return self.nodes * self.processes_per_node

    @property
    def devices(self) -> int:
        """GPUs of one program, on all nodes together."""
        return self.nodes * self.gpus_per_node // self.parts

    @property
    def parts(self) -> int:
        """Equal parts of a node, on each of which one training runs at a time."""
        return min(self.trainings_per_node, self.gpus_per_node or 1)

    @property
    def turns(self) -> int:
        """Trainings that run one after the other on each part of a node."""
        return math.ceil(self.trainings_per_node / self.parts)

    @property
    def time_limit(self) -> int:
        """Minutes of a job: each of the trainings that take turns has its walltime."""
        return self.turns * self.walltime


@dataclass(frozen=True)
class DataOptions:
    """How the text of a training is prepared: the options of jaxway/data/prepare.py."""

    sources: tuple[tuple[str, tuple[str, ...]], ...]  # name and entries; the only one may be ""
    tokenizer: str
    validation_bytes: int
    validation: tuple[str, ...] = ()  # empty: text of the sources is held out
    text_column: str = "text"
    end_of_text: str | None = None
    token_shards: str | None = None  # type of the tokens that files are shards of

    @property
    def entries(self) -> tuple[str, ...]:
        """Files, folders and globs, of all sources and to validate on."""
        return (*(entry for _, entries in self.sources for entry in entries), *self.validation)

    @cached_property
    def id(self) -> str:
        """Name of these options, not of what the files hold."""
        return short_hash(asdict(self))

    @property
    def record(self) -> str:
        """The file that says where the prepared data lie, and what they are."""
        return f"results/data/{self.id}.json"


@dataclass(frozen=True)
class SmokeTestJob:
    placement: Placement
    options: Options
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of all jobs


@dataclass(frozen=True)
class TrainJob:
    """A training: a chain of jobs, at most ``max_jobs``, each of which resumes the one before."""

    name: str
    placement: Placement
    program: str
    options: Options
    data: DataOptions | None  # None: the program brings its own
    max_jobs: int
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of all jobs

    @property
    def origin(self) -> str | None:
        """The training at whose checkpoint it begins; one of another configuration has a /."""
        name = self.options.get("from") if self.program == "train" else None
        return split_origin(name)[0] if name else None


@dataclass(frozen=True)
class BenchmarkJob:
    name: str
    placement: Placement
    program: str
    options: Options
    sif: str | None  # a container in place of the configured one
    rounds: int
    timeout_minutes: float  # of one start of the program
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of all jobs


@dataclass(frozen=True)
class Allocation:
    """A job that runs several benchmarks: all that have the same placement but for the walltime."""

    name: str
    placement: Placement
    benchmarks: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked and completed by the site."""

    image: str
    tmpdir: str | None
    packages: Mapping[str, tuple[str, ...]]  # by kind: python, debian
    preflight: bool
    account: str | None
    platform: str | None
    environment: Mapping[str, str]
    smoke_test: SmokeTestJob
    train: Mapping[str, TrainJob]
    benchmark: Mapping[str, BenchmarkJob]
    history: str
    benchmark_allocations: Mapping[str, Allocation]
    node_check_allocations: Mapping[str, Allocation] = field(default_factory=dict)

    @cached_property
    def allocations(self) -> Mapping[str, Allocation]:
        """Those of the benchmarks, and those that check nodes."""
        return {**self.benchmark_allocations, **self.node_check_allocations}

    def own_sifs(self, allocations: Iterable[Allocation]) -> list[str]:
        """Containers that benchmarks of these name in place of the configured one."""
        jobs = (self.benchmark[name] for each in allocations for name in each.benchmarks)
        return sorted({job.sif for job in jobs if job.sif})

    @cached_property
    def data(self) -> Mapping[str, DataOptions]:
        """What trainings need prepared, by its id."""
        return {job.data.id: job.data for job in self.train.values() if job.data}

    @property
    def nodes_to_check(self) -> list[str]:
        """Names of the nodes to compare with each other."""
        placements = [each.placement for each in self.node_check_allocations.values()]
        return list(dict.fromkeys(placement.node for placement in placements if placement.node))


@dataclass(frozen=True)
class PullJob:
    """Makes a container, where login nodes may not."""

    placement: Placement


SubmittedJob = SmokeTestJob | TrainJob | Allocation | PullJob
