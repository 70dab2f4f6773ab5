"""What a job of Snakemake does: by its label for users, and by a hash that other runs know, too."""

import hashlib
from pathlib import Path

from snakemake.io import is_flagged
from snakemake_executor_plugin_slurm.utils import get_job_wildcards
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

MAX_HASHED_BYTES = 1 << 20  # of an input; larger ones are known by size and time


def label_of(job: Job) -> str:
    """Rule and wildcards of a job."""
    return " ".join(filter(None, [job.name, get_job_wildcards(job)]))


def work_of(job: Job) -> str:
    """Hash of a job's command, its parameters and the content of its inputs.

    Without resources: a job that waits for another partition does the same.
    """
    digest = hashlib.sha256(f"{job.rule.name} {job.output} {job.shellcmd} ".encode())
    digest.update(repr([list(job.params), list(job.params.items())]).encode())
    for file in job.input:
        if not is_flagged(file, "ancient"):
            path = Path(file)
            status = path.stat()
            digest.update(f" {path} {status.st_size} ".encode())
            small = path.is_file() and status.st_size <= MAX_HASHED_BYTES
            digest.update(path.read_bytes() if small else str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
