"""One call of sbatch that is either known to have submitted a job or known not to have."""

import fcntl
import shlex
import subprocess
import threading
import time
from pathlib import Path

from jaxway_shared.errors import UserError
from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway.slurm.commands import UNREACHABLE_RE, error_message
from jaxway.slurm.queue import QueryError

SBATCH_LOCK = Path(".snakemake/jaxway/sbatch.lock")
SBATCH_TIMEOUT_S = 120
CLUSTER_RESOURCES = ("cluster", "clusters", "slurm_cluster")  # the plugin's


class RefusedError(Exception):
    """Slurm took no job; ``str()`` is its reason."""


def check_supported(job: Job) -> None:
    """UserError where the job is of a kind that is not submitted."""
    if job.is_group():
        raise UserError("JW215", f"{job.name}: a group of jobs is not submitted as one job")
    for name in CLUSTER_RESOURCES:
        if job.resources.get(name):
            raise UserError("JW215", f"{job.name}: {name}: jobs go to this machine's cluster only")


def sbatch(call: str, command: str) -> str:
    """Submit a job that runs ``command``; its id.

    RefusedError where Slurm says no; QueryError where it is not known whether there is a job now.
    Ctrl-C does not reach the call, and the lock that it inherits shows that it still runs after
    Snakemake was killed: see wait_for_calls().
    """
    SBATCH_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with SBATCH_LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            result = subprocess.run(
                shlex.split(call),
                input=f"#!/bin/sh\n{command}\n",  # an argument has a limit of 128 KiB
                capture_output=True,
                text=True,
                timeout=SBATCH_TIMEOUT_S,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        except subprocess.TimeoutExpired:
            raise QueryError(f"sbatch did not answer within {SBATCH_TIMEOUT_S} s") from None
        except OSError as error:
            raise RefusedError(f"sbatch cannot be started: {error.strerror}") from None
    if result.returncode:
        if result.returncode < 0:  # by then Slurm may have taken the job
            raise QueryError(f"sbatch was ended by signal {-result.returncode}")
        if UNREACHABLE_RE.search(result.stderr):
            raise QueryError(f"sbatch: {error_message(result)}")
        lines = [line.removeprefix("sbatch: error: ") for line in result.stderr.splitlines()]
        raise RefusedError("; ".join(filter(None, lines)) or "sbatch gave no reason")
    try:
        job: str = validate_or_get_slurm_job_id(result.stdout.split(";")[0].strip(), result.stdout)
    except WorkflowError:
        raise QueryError(f"sbatch printed no job id: {result.stdout!r}") from None
    return job


def wait_for_calls(closing: threading.Event, timeout_s: float = SBATCH_TIMEOUT_S) -> None:
    """Wait until no call of sbatch runs that a killed run has left, or Ctrl-C comes."""
    SBATCH_LOCK.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with SBATCH_LOCK.open("a") as lock:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if closing.wait(0.1):
                    return
