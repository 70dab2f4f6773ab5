"""A chain of short jobs that do nothing but count, and commands of Slurm that are slow or fail."""

from dataclasses import dataclass
from pathlib import Path

from jaxway.slurm.journal import JOURNAL, Journal
from nodes import IMAGE, Checkout, Cluster, Snakemake

SCRATCH = "/p/scratch/training"
STEPS_PER_JOB = 5
# Leaves where each job began, and a checkpoint for each step.
PROGRAM = f"""
import os, sys, time
state, last, seconds = os.environ["JAXWAY_STATE"], int(sys.argv[1]), float(sys.argv[2])
file = state + "/last_checkpoint_step"
step = int(open(file).read()) if os.path.exists(file) else 0
with open(state + "/starts", "a") as starts:
    print(os.environ["SLURM_JOB_ID"], step, os.environ["JAXWAY_DEADLINE"], file=starts)
for step in range(step + 1, min(step + {STEPS_PER_JOB}, last) + 1):
    time.sleep(seconds)
    with open(file + ".part", "w") as part:
        part.write(str(step))
    os.replace(file + ".part", file)
sys.exit(0 if step == last else 75)
"""
# Stand before Slurm's commands in PATH. A file of that name beside it switches a fault on.
FAULTS = """#!/bin/bash
here=$(dirname "$0") name=$(basename "$0")
[[ " $* " == *" --test-only "* ]] && exec /usr/bin/$name "$@"
[ -e "$here/fail" ] && { echo "$name: error: Unable to contact slurm controller" >&2; exit 1; }
touch "$here/$name.called"
[ -e "$here/slow-before" ] && sleep "$(cat "$here/slow-before")"
/usr/bin/$name "$@"
code=$?
touch "$here/$name.done"
[ -e "$here/slow-after" ] && sleep "$(cat "$here/slow-after")"
exit $code
"""


@dataclass(frozen=True)
class Start:
    """A job of the training, the checkpoint from which it began, and its end at the latest."""

    job: str
    step: int
    deadline: int  # Unix time


class Chain:
    """A checkout with one training of many jobs."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.checkout = Checkout(cluster, name=name)
        cluster.run(f"rm -rf {SCRATCH}/alice/jaxway/train/{name}-*")
        self.checkout.path("program.py").write_text(PROGRAM)

    def skip_smoke_test(self) -> None:
        """Leaves what it would, and the pull before it: where only the training matters."""
        sif = f"{SCRATCH}/jureca_containers/jax.sif"
        pull = f".venv/bin/jaxway pull --image={IMAGE} --sif={sif} --link=results/container/jax.sif"
        touch = "touch results/smoke_test.json results/.smoke_test_passed"
        script = f"mkdir -p results/container && {pull} && {touch}"
        self.cluster.run(f"cd {self.checkout.folder} && {script}")

    def configure(self, steps: int, seconds: float) -> str:
        """Configuration of a training with so many steps of so many seconds; its file."""
        program = f"{self.checkout.folder}/program.py"
        training = {
            **{"program": "command", "command": f"python3 {program} {steps} {seconds}"},
            **{"max_jobs": 100, "walltime": 10, "partition": "dc-gpu-devel"},
        }
        return self.checkout.configure("chain", {"train": {self.name: training}})

    def start(self, config: str, faults: str = "") -> Snakemake:
        """Starts Snakemake, with a folder of faults first in PATH."""
        folder = f"{self.checkout.folder}/{faults}"
        path = f"{folder}:/usr/local/bin:/usr/bin:/bin" if faults else ""
        return self.checkout.start(config, "train", **({"PATH": path} if path else {}))

    def fault(self, command: str, **switches: str) -> Path:
        """A folder with a command that has faults, switched on by files with these contents."""
        folder = self.checkout.path(f"faulty-{command}")
        folder.mkdir(exist_ok=True)
        (folder / command).write_text(FAULTS)
        (folder / command).chmod(0o755)
        folder.chmod(0o777)
        for name, content in switches.items():
            (folder / name.replace("_", "-")).write_text(content)
        return folder

    def starts(self) -> list[Start]:
        """Where each job of the training has begun."""
        files = [*self.cluster.path(f"{SCRATCH}/alice/jaxway/train").glob(f"{self.name}-*/starts")]
        lines = files[0].read_text().splitlines() if files else []
        return [Start(job, *map(int, numbers)) for job, *numbers in map(str.split, lines)]

    def jobs(self) -> dict[str, list[str]]:
        """Ids that Slurm's accounting has for each label of the journal."""
        journal = Journal(self.checkout.path(str(JOURNAL))).read()
        labels = {name: submission.label for name, submission in journal.items()}
        query = f"sacct --noheader -XP --starttime=now-2hours --name={','.join(labels)}"
        jobs: dict[str, list[str]] = {label: [] for label in labels.values()}
        for line in self.cluster.run(f"{query} --format=JobID,JobName").stdout.splitlines():
            job, name = line.split("|")
            jobs[labels[name]].append(job)
        return jobs

    def queue(self) -> list[str]:
        """Ids of Alice's jobs that have not ended."""
        return self.cluster.run("squeue --user=alice --noheader --format=%i").stdout.split()
