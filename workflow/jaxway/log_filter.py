"""Lines of Snakemake and its Slurm plugin that would mislead a reader."""

import logging

DROPPED = (
    "SLURM run ID:",  # it names none of our jobs
    "Singularity containers: ignored",  # the jobs' command lines start them
)


def is_kept(record: logging.LogRecord) -> bool:
    """A filter of Snakemake's logger."""
    return not record.getMessage().startswith(DROPPED)
