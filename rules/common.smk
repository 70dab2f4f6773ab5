"""What the rules share: site, checked configuration, and how a job reaches its nodes."""

import itertools
import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

HERE = workflow.current_basedir  # not that of a workflow that has this one as a module
if not isinstance(HERE, os.PathLike):
    code = "JW026"  # what prints codes comes with the checkout
    sentence = f"jaxway must be checked out, since it runs programs: name its Snakefile, not {HERE}"
    with_its_code = f"{sentence} [{code}]"
    sys.exit(with_its_code)
ROOT = Path(HERE).parent
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "workflow/scripts")]
from jaxway import launch as launching
from jaxway.config import containers
from jaxway.config.load import load, refuse_repeated_keys
from jaxway.config.schema import ConfigurationError
from jaxway.config.site import load_site
from jaxway.container import verify
from jaxway_shared.errors import UserError

DEPLOYED = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
try:
    SITE = load_site(ROOT)
    CONTAINED = DEPLOYED or SITE.container
    for file in workflow.configfiles:
        refuse_repeated_keys(Path(file))
    CONFIG = load(config, SITE)
    if CONFIG.packages and not CONTAINED:
        raise ConfigurationError(
            "JW018", "packages: they are added to a container, and here jobs run without one"
        )
    if any(job.sif for job in CONFIG.benchmark.values()) and not CONTAINED:
        raise ConfigurationError(
            "JW018", "benchmark: a sif is named, and here jobs run without a container"
        )
    PULLED = containers.container({}, SITE)
    CONTAINER = containers.container(CONFIG.packages, SITE)
    verify.exists(Path(CONTAINER.output))  # another user's folder may be closed
except UserError as error:
    sys.exit(error.line())
launching.prepare_environment(ROOT, SITE, CONTAINER if CONTAINED else None)


LOGS = ".snakemake/slurm_logs"  # of the Slurm executor, one for each job that it submits


JAXWAY = [sys.executable, str(ROOT / "workflow/jaxway")]  # of this checkout, installed or not
COMMAND = shlex.join(JAXWAY)


def script(name):
    """Path of a program."""
    return str(ROOT / f"workflow/scripts/{name}.py")


def names(section):
    """What the wildcard `name` may be: the section's jobs, or nothing."""
    return "|".join(map(re.escape, getattr(CONFIG, section))) or "(?!)"


def job_of(section, wildcards):
    """A job of a section of the configuration."""
    return (
        CONFIG.smoke_test if section == "smoke_test" else getattr(CONFIG, section)[wildcards.name]
    )


def made(container):
    """Outputs of making a container: the digest on which jobs depend, and itself while it is gone.

    Snakemake deletes outputs before each attempt and after a failure. A container that is there is
    none, and the digest is updated, so a failed attempt leaves both.
    """
    made = container.output
    missing = {} if Path(made).exists() else {"made": made}
    if missing and container.packages:
        missing = {"made": directory(made)}
    digest = container.digest
    return {"digest": update(digest) if Path(digest).exists() else digest, **missing}


def pulled_image():
    """Name of the image, on which a new pull depends: pinning the one that is there is no change."""
    record = verify.read_record(Path(PULLED.sif))
    return record.image if record and record.same_image(CONFIG.image) else CONFIG.image


DATA = {job.data.id: job.data for job in CONFIG.train.values() if job.data}


def data_of(job):
    """Record of the data that a training needs prepared; none, if it brings its own."""
    return {"data": f"results/data/{job.data.id}.json"} if job.data else {}


def prepare_data(name, record):
    """Command that prepares data and writes their record."""
    options, folder = DATA[name], f"{SITE.scratch}/data/{name}"
    words = [*JAXWAY, "prepare-data", f"--tokenizer={options.tokenizer}"]
    words += [f"--validation-bytes={options.validation_bytes}", "--data", *options.data]
    return shlex.join([*words, f"--folder={folder}", f"--out={record}"])


TMPDIR = [f"--tmpdir={CONFIG.tmpdir}"] if CONFIG.tmpdir else []
PULL = [*JAXWAY, "pull", f"--image={CONFIG.image}", f"--sif={PULLED.sif}"]
PULL = shlex.join(PULL + TMPDIR)
ADD_PACKAGES = [*JAXWAY, "add-packages", f"--base={PULLED.sif}"]
ADD_PACKAGES += [f"--out={CONTAINER.output}", *TMPDIR]
for kind, packages in CONFIG.packages.items():
    ADD_PACKAGES += [f"--{kind}", *packages]
ADD_PACKAGES = f"{shlex.join(ADD_PACKAGES)} -- {workflow.deployment_settings.apptainer_args}"


def container_input():
    """The container as input: its digest, a small file. If the rest is gone, onstart makes it."""
    return {"container": CONTAINER.digest} if CONTAINED else {}


def container_for(section):
    """SIF for a job of one process, which Snakemake starts. Several start theirs by launch()."""

    def container(wildcards):
        job = job_of(section, wildcards)
        return CONTAINER.sif if CONTAINED and job.placement.processes == 1 else None

    return container


def cores():
    """Cores of a node."""
    return SITE.cores_per_node or os.cpu_count()


def launch(job, contained, sif=None):
    """What stands before a program: environment and, for several processes, the site's launcher.

    With ``contained``, also what starts the container, or ``sif`` in its place.
    """
    placement = job.placement
    packed = CONTAINER if CONTAINED and not sif else None  # packages are the image's
    environment = launching.job_environment(CONFIG, packed)
    words = ["env", *(f"{k}={shlex.quote(v)}" for k, v in environment.items())]
    if placement.processes > 1:
        words += [
            SITE.launcher,
            f"--nodes={placement.nodes}",
            f"--ntasks-per-node={placement.processes_per_node}",
            f"--cpus-per-task={cores() // placement.processes_per_node}",
        ]
    if contained:
        arguments = workflow.deployment_settings.apptainer_args
        words += ['apptainer exec --home "$PWD"', arguments, sif or CONTAINER.sif]
    return " ".join([*words, "python3"])


def launcher(section):
    """What stands before a program. Snakemake itself starts the container of a single process."""

    def words(wildcards):
        job = job_of(section, wildcards)
        return launch(job, CONTAINED and job.placement.processes > 1)

    return words


def arguments(section):
    """Arguments of a program: see arguments_of()."""
    return lambda wildcards: arguments_of(job_of(section, wildcards))


def arguments_of(job, sif=None):
    """Arguments of a program: what every program takes, then its own options."""
    words = [f"--devices={job.placement.devices}"]
    if CONFIG.platform:
        words.append(f"--platform={CONFIG.platform}")
    if sif:
        words.append(f"--container-record={sif}.json")
    elif CONTAINED:
        words.append(f"--container-record={CONTAINER.record}")
        words.append(f"--image={CONFIG.image}")
    if SITE.host_suffix:
        words.append(f"--host-suffix={SITE.host_suffix}")
    for key, value in job.options.items():
        if value is None:
            continue
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        else:
            words.append(f"--{flag}={value}")
    return shlex.join(words)


def programs_of(allocation):
    """Programs that run in an allocation."""
    benchmarks = CONFIG.allocations[allocation].benchmarks
    return sorted({script(f"benchmark_{CONFIG.benchmark[x].program}") for x in benchmarks})


def digests_of(allocation):
    """Digests of the containers that its benchmarks name themselves, which a pull leaves."""
    sifs = [CONFIG.benchmark[x].sif for x in CONFIG.allocations[allocation].benchmarks]
    return sorted({f"{sif}.digest" for sif in sifs if sif})


def vet_nodes(out):
    """Command that compares the nodes to vet, without their results."""
    words = [*JAXWAY, "check-nodes", f"--site={SITE.file}", f"--out={out}"]
    return shlex.join([*words, f"--history={CONFIG.history}", "--nodes", *CONFIG.nodes_to_check])


def plan(allocation):
    """What run_benchmarks.py does in an allocation."""
    place, benchmarks = CONFIG.allocations[allocation], []
    for name in place.benchmarks:
        job = CONFIG.benchmark[name]
        program = shlex.quote(script(f"benchmark_{job.program}"))
        words = [launch(job, CONTAINED, job.sif), program, arguments_of(job, job.sif)]
        words.append(f"--scratch={SITE.scratch}")
        parts = {key: getattr(job, key) for key in ("program", "options", "rounds")}
        parts["timeout_minutes"] = job.timeout_minutes
        benchmarks.append({"name": name, **parts, "command": " ".join(words)})
    # Neither walltime nor partition: another one makes nothing stale.
    keys = ("nodes", "gpus_per_node", "processes_per_node", "node")
    return {
        "allocation": {key: getattr(place.placement, key) for key in keys},
        "benchmarks": benchmarks,
    }


PLACES = [*CONFIG.benchmark_allocations]
VETTED = [*CONFIG.node_check_allocations]


def threads_of(section):
    """Cores of a task: see resources_of()."""
    return lambda wildcards: cores() // tasks_per_node(job_of(section, wildcards))


def tasks_per_node(job):
    """Tasks to ask Slurm for: with fewer than 2 its plugin refuses the resource `mpi`."""
    return max(2, job.placement.processes_per_node) if SITE.launcher else 1


def resources_of(section):
    """What a job asks for: whole nodes, their GPUs, and its time.

    With `mpi` the job's shell line runs in the batch step itself: no outer srun gets in the way.
    """
    if not SITE.launcher:
        return {"nodes": 1}

    def from_job(value):
        return lambda wildcards: value(job_of(section, wildcards))

    return {
        "nodes": from_job(lambda job: job.placement.nodes),
        "tasks_per_node": from_job(tasks_per_node),
        "gres": from_job(lambda job: f"gpu:{job.placement.gpus_per_node}"),
        "runtime": from_job(lambda job: job.placement.walltime),
        "slurm_partition": from_job(lambda job: job.placement.partition),
        "slurm_account": CONFIG.account,
        "slurm_extra": from_job(
            lambda job: f"--nodelist={node}" if (node := job.placement.node) else ""
        ),
        "mem_mb": 0,  # else Snakemake asks for little; without a wish a whole node is given with all
        "mpi": "srun",
    }
