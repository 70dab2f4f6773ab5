"""What the rules share: site, checked configuration, and how a job reaches its nodes."""

import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.settings.types import DeploymentMethod

ROOT = Path(workflow.basedir)
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "workflow/scripts")]
import configuration
import data
import verify_container

DEPLOYED = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
try:
    SITE = configuration.load_site(ROOT)
    CONTAINED = DEPLOYED or SITE["container"]
    for file in workflow.configfiles:
        configuration.refuse_repeated_keys(Path(file))
    CONFIG = configuration.load(config, SITE)
    if CONFIG["packages"] and not CONTAINED:
        sys.exit("packages: they are added to a container, and here jobs run without one")
    if any(job["sif"] for job in CONFIG["benchmark"].values()) and not CONTAINED:
        sys.exit("benchmark: a sif is named, and here jobs run without a container")
    PULLED = configuration.container(CONFIG | {"packages": {}}, SITE)
    CONTAINER = configuration.container(CONFIG, SITE)
except configuration.ConfigurationError as error:
    sys.exit(str(error))
configuration.prepare_environment(ROOT, SITE, CONTAINER if CONTAINED else None)


onstart:
    if CONTAINED and not DEPLOYED:
        raise WorkflowError(
            f"The site {SITE['name']} runs jobs in a container, but there is no apptainer in PATH."
        )
    check_container()
    refuse_second_run()
    refuse_absent_nodes()
    prepare_wiped_data()
    SAFE.update({job: safe_step(job)[:2] for job in planned("train_run")})


def planned(*rules):
    """Jobs of these rules that this run is going to do."""
    return [job for job in workflow.dag.needrun_jobs() if job.rule.name in rules]


def check_container():
    """Make again what was wiped, and submit nothing into a container that has changed.

    What this run makes anew in any case need not be there or whole.
    """
    users = ("add_packages", "verify_container", "smoke_test", "train_run", "benchmark_run")
    if not CONTAINED or not planned(*users):
        return
    makers = {"pull": (PULLED, PULL)}
    if CONFIG["packages"]:
        makers["add_packages"] = (CONTAINER, ADD_PACKAGES)
    for maker, (container, command) in makers.items():
        if planned(maker) or not Path(container["digest"]).exists():
            continue
        if not Path(container["made"]).exists():
            print(f"{container['made']} is gone: making it again", flush=True)
            if subprocess.run(command, shell=True).returncode:
                raise WorkflowError(
                    f"{container['made']} is gone, and cannot be made again: see above"
                )
        found = verify_container.problem(Path(container["sif"]), full=False, image=CONFIG["image"])
        if found:
            raise WorkflowError(found)


def submitted(*options):
    """Id, state and comment of each job that was submitted from this folder, as Slurm lists them."""
    if not SITE["launcher"] or not shutil.which("squeue"):
        return []
    command = ["squeue", "--me", "--noheader", "--format=%i %T %k %Z", *options]
    queue = subprocess.run(command, capture_output=True, text=True).stdout
    fields = [line.split(maxsplit=3) for line in queue.splitlines()]
    return [f[:3] for f in fields if len(f) == 4 and f[2][:5] == "rule_" and f[3] == os.getcwd()]


def refuse_second_run():
    """Submit nothing while jobs of an earlier run in this folder, which was killed, go on."""
    if jobs := " ".join(job[0] for job in submitted()):
        raise WorkflowError(
            f"Jobs of an earlier run in this folder have not ended: {jobs}. Start again when they "
            f"have, or end them now with `scancel {jobs}`; nothing was submitted."
        )


def refuse_absent_nodes():
    """Submit nothing if Slurm cannot start a job on a node to vet: it would wait without end."""
    wanted = {job_of("allocation", job.wildcards)["node"] for job in planned("benchmark_run")}
    if wanted := wanted - {None}:
        command = ["sinfo", "--noheader", "--Node", "--format=%N %T", f"--nodes={','.join(wanted)}"]
        sinfo = subprocess.run(command, capture_output=True, text=True)
        states = dict(line.split() for line in sinfo.stdout.splitlines())
        never = r"down|drain|fail|maint|unknown|\*"
        states = {node: states.get(node, "unknown") for node in sorted(wanted)}
        absent = [f"{node} ({x})" for node, x in states.items() if re.search(never, x)]
        if absent:
            raise WorkflowError(
                f"vetting.nodes: no job can start on {', '.join(absent)}; take these out, and run "
                "again; nothing was submitted."
            )


def prepare_wiped_data():
    """Prepare again what a training of this run needs and its record says is there."""
    for job in planned("train_run"):
        record = Path(job.input.get("data", ""))
        if record.is_file() and data.problem(json.loads(record.read_text())):
            print(f"the data of {record} are gone: preparing them again", flush=True)
            if subprocess.run(prepare_data(record.stem), shell=True).returncode:
                raise WorkflowError(
                    f"The data of {record} are gone, and see above why they stay so."
                )


SAFE = {}  # of each planned training, its state's folder and the step that was safe in it


def safe_step(job):
    """The folder of a training's state, its last safe step, and why its last job gave up, if so."""
    folders = [*Path(job.params.state).parent.glob(f"{Path(job.params.state).name}*")]
    if not folders:
        return None, 0, ""
    state = max(folders, key=lambda folder: folder.stat().st_mtime)  # of the newest image
    step, failed = (state / name for name in ("step", "failed"))
    text = step.read_text().strip() if step.exists() else ""
    reason = failed.exists() and (failed.read_text().strip() or f"it gave up, see {job.log[0]}")
    return state, int(text) if text.isdecimal() else 0, reason


def restarts(job):
    """How often a job may be started again; Snakemake asks when one has failed.

    A training goes on in the next job if it got further in the last one, up to its allocations,
    unless the program has given up or somebody has cancelled the job.
    """
    if job.rule.name != "train_run" or job not in SAFE:  # in a job's own Snakemake: none
        return job.rule.restart_times
    (folder, step, reason), (earlier, before) = safe_step(job), SAFE[job]
    SAFE[job] = folder, step
    before = before if folder == earlier else 0
    comment = f"rule_train_run_wildcards_{job.wildcards.name}"
    states = [state for _, state, what in submitted("--states=all", "--sort=i") if what == comment]
    allowed = job_of("train", job.wildcards)["allocations"]
    if reason:
        why = reason
    elif states and states[-1] == "CANCELLED":
        why = "its job was cancelled"
    elif step <= before:
        why = f"its last job got no further than step {before}, see {job.log[0]}"
    elif job.attempt >= allowed:
        why = f"it has had its {allowed} allocations; step {step} is safe"
    else:
        print(f"Training {job.wildcards.name} goes on from step {step}.", flush=True)
        return job.attempt
    print(f"Training {job.wildcards.name} stops: {why}.", file=sys.stderr, flush=True)
    return 0


Job.restart_times = property(restarts)


async def wait_for_next_look(executor):
    """Wait before the next look at the queue: 0.6 s after a job has ended, then 1 s longer each
    time, up to 18 s.

    The Slurm plugin waits ten times as long and has no setting for it: a smoke test's end would be
    seen late, Ctrl-C would take up to 180 s, and squeue may have forgotten a job by then.
    """
    await asyncio.sleep(executor.next_seconds_between_status_checks / 10)


RemoteExecutor.sleep = wait_for_next_look


# The rich logger stumbles over a failed job that has no log file yet. It need not say so.
logging.raiseExceptions = False


def print_reasons(logs):
    """Print why jobs failed: the rich logger leaves out what Slurm said."""
    text = "".join(Path(log).read_text() for log in logs)
    reasons = re.findall(r"^ *message: (?!None$)(.+)", text, re.MULTILINE)
    for reason in dict.fromkeys(reasons):
        print(reason, file=sys.stderr)


def script(name):
    """Path of a program."""
    return str(ROOT / f"workflow/scripts/{name}.py")


def names(section):
    """What the wildcard `name` may be: the section's jobs, or nothing."""
    return "|".join(map(re.escape, CONFIG[section])) or "(?!)"


def job_of(section, wildcards):
    """Settings of a job, as configuration.load() made them."""
    return CONFIG[section][wildcards.get("name", section)]


def made(container):
    """Outputs of making a container: the digest on which jobs depend, and itself while it is gone.

    Snakemake deletes outputs before each attempt and after a failure. A container that is there is
    none, and the digest is updated, so a failed attempt leaves both.
    """
    made = container["made"]
    missing = {} if Path(made).exists() else {"made": made}
    if missing and container["packages"]:
        missing = {"made": directory(made)}
    digest = container["digest"]
    return {"digest": update(digest) if Path(digest).exists() else digest, **missing}


def pulled_image():
    """Name of the image, on which a new pull depends: pinning the one that is there is no change."""
    try:
        record = json.loads(Path(PULLED["record"]).read_text())
        same = verify_container.same_image(CONFIG["image"], record)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    return record["image"] if same else CONFIG["image"]


NEEDED = [job["data"] for job in CONFIG["train"].values() if job["data"]]
DATA = {configuration.short_hash(options): options for options in NEEDED}


def data_of(job):
    """Record of the data that a training needs prepared; none, if it brings its own."""
    name = configuration.short_hash(job["data"])
    return {"data": f"results/data/{name}.json"} if job["data"] else {}


def prepare_data(name):
    """Command that prepares data."""
    options, folder = DATA[name], f"{SITE['scratch']}/data/{name}"
    words = [sys.executable, script("prepare_data"), f"--tokenizer={options['tokenizer']}"]
    words += [f"--validation-bytes={options['validation_bytes']}", "--data", *options["data"]]
    return shlex.join([*words, f"--folder={folder}", f"--out=results/data/{name}.json"])


TEMPORARY = [f"--temporary={CONFIG['temporary']}"] if CONFIG["temporary"] else []
PULL = [sys.executable, script("pull"), f"--image={CONFIG['image']}", f"--sif={PULLED['sif']}"]
PULL = shlex.join(PULL + TEMPORARY)
ADD_PACKAGES = [sys.executable, script("add_packages"), f"--base={PULLED['sif']}"]
ADD_PACKAGES += [f"--out={CONTAINER['made']}", *TEMPORARY]
for kind, packages in CONFIG["packages"].items():
    ADD_PACKAGES += [f"--{kind}", *packages]
ADD_PACKAGES = f"{shlex.join(ADD_PACKAGES)} {workflow.deployment_settings.apptainer_args}"


def container_input():
    """The container as input: its digest, a small file. If the rest is gone, onstart makes it."""
    return {"container": CONTAINER["digest"]} if CONTAINED else {}


def container_for(section):
    """SIF for a job of one process, which Snakemake starts. Several start theirs by launch()."""

    def container(wildcards):
        job = job_of(section, wildcards)
        return CONTAINER["sif"] if CONTAINED and processes(job) == 1 else None

    return container


def processes(job):
    """Number of JAX processes of a job, on all nodes together."""
    return job["nodes"] * job["processes_per_node"]


def cores():
    """Cores of a node."""
    return SITE["cores_per_node"] or os.cpu_count()


def launch(job, contained):
    """What stands before a program: environment and, for several processes, the site's launcher.

    With ``contained``, also what starts the container.
    """
    packed = CONTAINER if CONTAINED and not job.get("sif") else None  # packages are the image's
    environment = configuration.job_environment(CONFIG, packed)
    words = ["env", *(f"{k}={shlex.quote(v)}" for k, v in environment.items())]
    if processes(job) > 1:
        words += [
            SITE["launcher"],
            f"--nodes={job['nodes']}",
            f"--ntasks-per-node={job['processes_per_node']}",
            f"--cpus-per-task={cores() // job['processes_per_node']}",
        ]
    if contained:
        arguments = workflow.deployment_settings.apptainer_args
        words += ['apptainer exec --home "$PWD"', arguments, job.get("sif") or CONTAINER["sif"]]
    return " ".join([*words, "python3"])


def launcher(section):
    """What stands before a program. Snakemake itself starts the container of a single process."""

    def words(wildcards):
        job = job_of(section, wildcards)
        return launch(job, CONTAINED and processes(job) > 1)

    return words


def arguments(section):
    """Arguments of a program: see arguments_of()."""
    return lambda wildcards: arguments_of(job_of(section, wildcards))


def arguments_of(job):
    """Arguments of a program: what every program takes, then its own options."""
    words = [f"--devices={job['nodes'] * job['gpus_per_node']}"]
    if CONFIG["platform"]:
        words.append(f"--platform={CONFIG['platform']}")
    if job.get("sif"):
        words.append(f"--container-record={job['sif']}.json")
    elif CONTAINED:
        words.append(f"--container-record={CONTAINER['record']}")
        words.append(f"--image={CONFIG['image']}")
    if SITE["host_suffix"]:
        words.append(f"--host-suffix={SITE['host_suffix']}")
    for key, value in job["options"].items():
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
    benchmarks = CONFIG["allocation"][allocation]["benchmarks"]
    return sorted({script(f"benchmark_{CONFIG['benchmark'][x]['program']}") for x in benchmarks})


def digests_of(allocation):
    """Digests of the containers that its benchmarks name themselves, which a pull leaves."""
    sifs = [CONFIG["benchmark"][x]["sif"] for x in CONFIG["allocation"][allocation]["benchmarks"]]
    return sorted({f"{sif}.digest" for sif in sifs if sif})


def vet_nodes():
    """Command that compares the nodes to vet, without their results."""
    nodes = dict.fromkeys(CONFIG["allocation"][name]["node"] for name in VETTED)
    words = [sys.executable, script("vet"), f"--site={SITE['file']}", "--out=results/vetting.json"]
    return shlex.join([*words, f"--history={CONFIG['history']}", "--nodes", *nodes])


def vet_rest():
    """Compare the nodes whose jobs left a result, when others have not: these are named, too."""
    if planned("vet_nodes") and not Path("results/vetting.json").exists():
        results = [f"results/benchmark/{name}.json" for name in VETTED]
        there = shlex.join(result for result in results if Path(result).exists())
        subprocess.run(f"{vet_nodes()} --results {there}", shell=True)
        Path("results/vetting.json").unlink(missing_ok=True)


def plan(allocation):
    """What run_benchmarks.py does in an allocation."""
    place, benchmarks = CONFIG["allocation"][allocation], []
    for name in place["benchmarks"]:
        job = CONFIG["benchmark"][name]
        program = shlex.quote(script(f"benchmark_{job['program']}"))
        words = [launch(job, CONTAINED), program, arguments_of(job), f"--scratch={SITE['scratch']}"]
        parts = {key: job[key] for key in ("program", "options", "rounds", "minutes")}
        benchmarks.append({"name": name, **parts, "command": " ".join(words)})
    # Neither walltime nor partition: another one makes nothing stale.
    keys = ("nodes", "gpus_per_node", "processes_per_node", "node")
    return {"allocation": {key: place[key] for key in keys}, "benchmarks": benchmarks}


PLACES = [name for name, place in CONFIG["allocation"].items() if not place["node"]]
VETTED = [name for name, place in CONFIG["allocation"].items() if place["node"]]


def threads_of(section):
    """Cores of a task: see resources_of()."""
    return lambda wildcards: cores() // tasks_per_node(job_of(section, wildcards))


def tasks_per_node(job):
    """Tasks to ask Slurm for: with fewer than 2 its plugin refuses the resource `mpi`."""
    return max(2, job["processes_per_node"]) if SITE["launcher"] else 1


def resources_of(section):
    """What a job asks for: whole nodes, their GPUs, and its time.

    With `mpi` the job's shell line runs in the batch step itself: no outer srun gets in the way.
    """
    if not SITE["launcher"]:
        return {"nodes": 1}

    def from_job(value):
        return lambda wildcards: value(job_of(section, wildcards))

    return {
        "nodes": from_job(lambda job: job["nodes"]),
        "tasks_per_node": from_job(tasks_per_node),
        "gres": from_job(lambda job: f"gpu:{job['gpus_per_node']}"),
        "runtime": from_job(lambda job: job["walltime"]),
        "slurm_partition": from_job(lambda job: job["partition"]),
        "slurm_account": CONFIG["account"],
        "slurm_extra": from_job(
            lambda job: f"--nodelist={node}" if (node := job.get("node")) else ""
        ),
        "mem_mb": 0,  # all of the node
        "mpi": "srun",
    }
