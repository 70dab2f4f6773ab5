"""Jobs of Snakemake that go together, as one job of Slurm, since they share its node.

Each is still a job of its own for Snakemake and in the journal, with its log, result and next job.
The one of Slurm runs them side by side and, where they are more than the node has GPUs, in turns
(jaxway/share_node.py). It ends with the last of them.
"""

import math
import shlex
import sys
import threading
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway.slurm.journal import Submission

Member = tuple[Job, Submission]
GATHER_S = 5  # as jobs end, Snakemake starts the next ones in a few rounds
JAXWAY = Path(__file__).parents[1]


def trainings_per_node(job: Job) -> int:
    """How many jobs like this one share a node."""
    return int(job.resources.get("trainings_per_node", 1))


class Gathering:
    """Jobs that wait for others to share a node with."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, list[Member]] = {}

    def gather(self, job: Job, new: Submission) -> list[Member]:
        """The jobs to submit together, this one among them; none, if another thread has them.

        As many as a node takes or, when no other one has come for a while, fewer.
        """
        most, kind = trainings_per_node(job), kind_of(job, new)
        with self._lock:
            together = self._waiting.setdefault(kind, [])
            together.append((job, new))
            count = len(together)
            if count == most:
                return named(self._waiting.pop(kind))
        self._closing.wait(GATHER_S)
        with self._lock:
            is_complete = self._waiting.get(kind) is together and len(together) == count
            return named(self._waiting.pop(kind)) if is_complete else []


def named(members: list[Member]) -> list[Member]:
    """Members that know by which name Slurm has them, if they are several."""
    name = f"{members[0][1].name}-and-{len(members) - 1}-more"
    several = [(job, replace(new, shared_job=name)) for job, new in members]
    return several if len(members) > 1 else members


def kind_of(job: Job, new: Submission) -> Hashable:
    """What is the same of jobs that may share: all that Slurm is asked for.

    And whether they are a training's first: Slurm may refuse only those.
    """
    asked = {key: value for key, value in job.resources.items() if key != "training_state"}
    return job.name, job.threads, new.number == 1, repr(sorted(asked.items()))


def parts(job: Job) -> int:
    """How many jobs like this one share a node at a time: each is a task (Launch.resources)."""
    return int(job.resources.get("tasks_per_node", 1))


def time_limit(members: Sequence[Member]) -> int | None:
    """Minutes that a job needs whose members take turns; None, those that one of them asks for."""
    job, _ = members[0]
    turns = math.ceil(len(members) / parts(job))
    return turns * job.resources.runtime if turns > 1 else None


def command(members: Sequence[Member], lines: Sequence[str]) -> str:
    """What the job of Slurm runs: for each member a shell's line."""
    job, _ = members[0]
    gpus = job.resources.gres.rpartition(":")[2]
    words = [sys.executable, str(JAXWAY), "share-node", f"--parts={parts(job)}"]
    words += [f"--gpus={gpus}", f"--minutes={job.resources.runtime}"]
    words += ["--logs", *(new.log for _, new in members), "--commands", *lines]
    return f"exec {shlex.join(words)}"
