"""Lines of Snakemake and its Slurm plugin that would mislead a reader."""

import logging

from jaxway import interrupt

DROPPED = (
    "SLURM run ID:",  # it names none of our jobs
    "Singularity containers: ignored",  # the jobs' command lines start them
)
# Of a job on this machine, which Ctrl-C has reached as soon as Snakemake.
DROPPED_AFTER_CTRL_C = ("RuleException:", "Error in rule ")


def is_kept(record: logging.LogRecord) -> bool:
    """A filter of Snakemake's logger."""
    dropped = DROPPED + (DROPPED_AFTER_CTRL_C if interrupt.requested.is_set() else ())
    return not record.getMessage().startswith(dropped)
