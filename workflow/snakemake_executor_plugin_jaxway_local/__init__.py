"""Snakemake's executor `jaxway-local`: jobs on this machine. Snakemake finds it by this name."""

from jaxway.local_executor import Executor
from snakemake.executors.local import common_settings

__all__ = ["Executor", "common_settings"]
