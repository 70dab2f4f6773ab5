"""How each step is started: words of its command line, its environment, what Slurm is asked for."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxway_shared.benchmark import AllocatedNodes, BenchmarkPlan, PlannedBenchmark
from jaxway_shared.environment import SHELL_RE

from jaxway.config.containers import Container, container_with, record_path, target
from jaxway.config.jobs import (
    Allocation,
    BenchmarkJob,
    Config,
    DataOptions,
    Options,
    Placement,
    SmokeTestJob,
    TrainJob,
)
from jaxway.config.schema import ConfigurationError
from jaxway.config.site import Site

Words = list[str]
PULL_MINUTES = 120  # of a job that pulls: a limit, not a measurement
WORKING_DIRECTORY = "$PWD"  # the shell's, when the job runs
PACKAGES = "/opt/jaxway-packages"  # where the container sees those that lie in a folder


def command_line(words: Iterable[str]) -> str:
    """Words as a shell reads them; the working directory is its own."""
    return shlex.join(words).replace(f"'{WORKING_DIRECTORY}'", f'"{WORKING_DIRECTORY}"')


@dataclass(frozen=True)
class Launch:
    """Command lines of one configuration at one site, run from the checkout ``root``."""

    root: Path
    config: Config
    site: Site
    contained: bool  # jobs run in a container
    apptainer_args: str = ""

    def __post_init__(self) -> None:
        """Raise a sentence if the configuration asks for a container, and jobs run without one."""
        if self.config.packages and not self.contained:
            raise ConfigurationError(
                "JW018", "packages: they are added to a container, and here jobs run without one"
            )
        if any(job.sif for job in self.config.benchmark.values()) and not self.contained:
            raise ConfigurationError(
                "JW018", "benchmark: a sif is named, and here jobs run without a container"
            )

    @property
    def pulled(self) -> Container:
        """The container as it is pulled."""
        return container_with({}, self.site)

    @cached_property
    def container(self) -> Container:
        """The container in which jobs run: with the configured packages."""
        return container_with(self.config.packages, self.site)

    # ----------------------------------- on the login node: the command `jaxway`, without its files

    def pull(self) -> Words:
        words = ["pull", f"--image={self.config.image}", f"--sif={self.site.sif}"]
        words += [f"--key={self.site.image_key}"] if self.site.image_key else []
        return [*words, f"--link={self.pulled.sif}", *self.tmpdir()]

    def add_packages(self) -> Words:
        words = ["add-packages", f"--base={self.pulled.sif}", f"--link={self.container.output}"]
        words += self.tmpdir()
        for kind, packages in self.config.packages.items():
            words += [f"--{kind}", *packages]
        return [*words, "--", *self.apptainer_words(None)]

    def verify(self) -> Words:
        sif, image = f"--sif={self.container.sif}", f"--image={self.config.image}"
        return ["verify", "--full", sif, image]

    def prepare_data(self, data: DataOptions) -> Words:
        words = ["prepare-data", f"--tokenizer={data.tokenizer}"]
        words += [f"--validation-bytes={data.validation_bytes}"]
        words += [f"--text-column={data.text_column}"]
        words += [f"--end-of-text={data.end_of_text}"] if data.end_of_text is not None else []
        words += [f"--token-shards={data.token_shards}"] if data.token_shards else []
        words += ["--validation", *data.validation] if data.validation else []
        for name, entries in data.sources:
            words += ["--source", name, *entries] if name else ["--data", *entries]
        return [*words, f"--store={self.site.scratch}/data"]

    def check_nodes(self) -> Words:
        words = ["check-nodes", f"--site={self.site.file}", f"--history={self.config.history}"]
        return [*words, "--nodes", *self.config.nodes_to_check]

    def tmpdir(self) -> Words:
        return [f"--tmpdir={self.config.tmpdir}"] if self.config.tmpdir else []

    # ----------------------------------------- on compute nodes: programs, without what they write

    def smoke_test(self) -> Words:
        words = self.program(self.config.smoke_test, "smoke_test")
        return [*words, f"--scratch={self.site.scratch}"]

    def train(self, job: TrainJob) -> Words:
        words = self.program(job, job.program)
        words += [f"--data-record={job.data.record}"] if job.data else []
        return [
            *words,
            f"--state={state_link(job.name)}",
            f"--states={self.site.scratch}/train/{job.name}",
        ]

    def benchmark(self, job: BenchmarkJob) -> Words:
        sif = str(target(Path(job.sif))) if job.sif else None
        words = self.program(job, f"benchmark_{job.program}", sif=sif)
        return [*words, f"--scratch={self.site.scratch}"]

    def plan(self, allocation: Allocation) -> BenchmarkPlan:
        """What the job of an allocation runs."""
        placement = allocation.placement
        return BenchmarkPlan(
            # Neither walltime nor partition: another one makes nothing stale.
            AllocatedNodes(
                placement.nodes,
                placement.gpus_per_node,
                placement.processes_per_node,
                placement.node,
            ),
            [
                PlannedBenchmark(
                    name=job.name,
                    program=job.program,
                    options=dict(job.options),
                    rounds=job.rounds,
                    timeout_minutes=job.timeout_minutes,
                    command=command_line(self.benchmark(job)),
                )
                for job in (self.config.benchmark[name] for name in allocation.benchmarks)
            ],
        )

    def program(
        self,
        job: SmokeTestJob | TrainJob | BenchmarkJob,
        name: str,
        sif: str | None = None,
    ) -> Words:
        """A program and what every program takes. ``sif``: in place of the configured container."""
        placement = job.placement
        own = self.container if self.contained and not sif else None  # packages are the image's
        words = [*self.environment(own, job.environment), *self.launcher(placement)]
        if self.contained:
            words += self.in_container(sif or self.container.sif, own)
        words += ["python3", str(self.script(name)), f"--devices={placement.devices}"]
        words += [f"--platform={self.config.platform}"] if self.config.platform else []
        if sif:
            words.append(f"--container-record={record_path(Path(sif))}")
        elif own:
            words += [f"--container-record={own.record}", f"--image={self.config.image}"]
        words += [f"--host-suffix={self.site.host_suffix}"] if self.site.host_suffix else []
        return words + option_words(job.options)

    def environment(
        self, container: Container | None, own: Mapping[str, str] | None = None
    ) -> Words:
        """What gives a command a job's environment: the user's shell has no say in it. ``own``:
        variables of this job alone."""
        variables = {**self.config.environment, **(own or {})}
        if container and container.packages:
            paths = [PACKAGES, variables.get("PYTHONPATH")]
            variables["PYTHONPATH"] = ":".join(filter(None, paths))
        clean = str(self.root / "workflow/scripts/clean_environment.sh")
        words = ["bash", clean, SHELL_RE, " ".join(self.site.inherited_variables)]
        return [*words, "env", *(f"{name}={value}" for name, value in variables.items())]

    def in_container(self, sif: str, container: Container | None) -> Words:
        """What starts a command in a container."""
        options = ["--home", WORKING_DIRECTORY, *self.apptainer_words(container)]
        return ["apptainer", "exec", *options, sif]

    def on_this_node(self) -> Words:
        """What starts a command in the container as a job does."""
        start = self.in_container(self.container.sif, self.container)
        return [*self.environment(self.container), *start]

    def launcher(self, placement: Placement) -> Words:
        """What starts several processes."""
        if placement.processes == 1:
            return []
        return [
            *(self.site.launcher or "").split(),
            f"--nodes={placement.nodes}",
            f"--ntasks-per-node={placement.processes_per_node}",
            f"--cpus-per-task={self.threads(placement)}",
        ]

    @cached_property
    def apptainer_options(self) -> Words:
        """The configured ones, as words."""
        return shlex.split(os.path.expandvars(self.apptainer_args))

    def apptainer_words(self, container: Container | None) -> Words:
        """Options of `apptainer exec`; ``container``: one whose packages lie in a folder."""
        words = [*self.apptainer_options]
        if container and (folder := container.packages):
            words += ["--bind", f"{folder}:{PACKAGES}:ro"]
        return words

    def script(self, name: str) -> Path:
        """A program."""
        return self.root / f"workflow/scripts/{name}.py"

    # ---------------------------------------------------------------------- what Slurm is asked for

    @property
    def cores(self) -> int:
        """Cores of a node."""
        return self.site.cores_per_node or os.cpu_count() or 1

    def threads(self, placement: Placement) -> int:
        """Cores of a process."""
        return self.cores // (placement.processes_per_node * placement.parts)

    def resources(self, placement: Placement) -> dict[str, str | int | None]:
        """Whole nodes, their GPUs, and time."""
        if not self.site.launcher:
            return {"nodes": 1}
        nodelist = [f"--nodelist={placement.node}"] if placement.node else []
        return {
            "nodes": placement.nodes,
            "tasks_per_node": placement.processes_per_node * placement.parts,
            "gres": f"gpu:{placement.gpus_per_node}",
            "runtime": placement.walltime,
            "slurm_partition": placement.partition,
            "slurm_account": self.config.account,
            "slurm_extra": " ".join([*placement.options, *nodelist]),
            "mem_mb": 0,  # else Snakemake asks for little; without it a whole node has all of its
        }

    def pull_resources(self) -> dict[str, str | int | None]:
        """A node without its GPUs; nothing, where this node pulls."""
        if not self.site.pull_partition:
            return {}
        return {
            "nodes": 1,
            "cpus_per_task": self.cores,
            "runtime": PULL_MINUTES,
            "slurm_partition": self.site.pull_partition,
            "slurm_account": self.config.account,
            "mem_mb": 0,
        }


def slurm_options(placement: Placement, account: str | None) -> Words:
    """How sbatch and srun are asked for nodes, their GPUs, and time."""
    options = [f"--nodes={placement.nodes}", f"--gres=gpu:{placement.gpus_per_node}"]
    options += [f"--time={placement.time_limit}"]
    options += [f"--partition={placement.partition}"] if placement.partition else []
    return options + ([f"--account={account}"] if account else []) + list(placement.options)


def option_words(options: Options) -> Words:
    """A program's own options."""
    words: Words = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif isinstance(value, dict):
            words.append(f"--{flag}={json.dumps(value)}")
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def results_folder(training: str) -> str:
    """Where a training's program leaves its results."""
    return f"results/train/{training}"


def state_link(training: str) -> str:
    """The link that a training's program makes to the folder of its state, which it names."""
    return f"{results_folder(training)}/state"


def inherited_environment(
    environ: Mapping[str, str], contained: bool, commit: str | None
) -> dict[str, str]:
    """What jobs inherit from this process, beside what Launch.environment() drops and sets."""
    # The shell's own has links in it, which lead nowhere in a container.
    result = {**environ, "PWD": os.getcwd()}
    if not contained:  # python3 is to be the one that runs this: it has JAX beside it
        result["PATH"] = f"{Path(sys.executable).parent}:{result['PATH']}"
    if "SLURM_JOB_END_TIME" in result:  # in a job, before the Slurm plugin drops it
        result["JAXWAY_DEADLINE"] = result["SLURM_JOB_END_TIME"]
    # A compute node may have no git.
    result["JAXWAY_COMMIT"] = commit or result.get("JAXWAY_COMMIT", "unknown")
    return result


def prepare_environment(root: Path, contained: bool) -> None:
    """Make this process's environment the one that jobs inherit."""
    os.environ.update(inherited_environment(os.environ, contained, commit_of(root)))


def commit_of(root: Path) -> str | None:
    """Commit of a checkout, marked where its code has changed; None, where git knows of none."""
    git = ["git", "-C", str(root)]
    commit = [*git, "describe", "--always", "--abbrev=40"]
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!config"]  # results tell that one
    try:
        described = subprocess.run(commit, capture_output=True, text=True, check=True)
        dirty = "-dirty" if subprocess.run(changed, capture_output=True).returncode else ""
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() + dirty
