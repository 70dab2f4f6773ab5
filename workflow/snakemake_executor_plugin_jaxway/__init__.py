"""Snakemake's executor `jaxway`: jobs on Slurm. Snakemake finds it by this module's name."""

from dataclasses import dataclass
from typing import ClassVar

from jaxway.slurm.executor import Executor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(SlurmSettings):
    """Options --jaxway-..., in a profile jaxway-...: those of the Slurm plugin that we follow.

    A constant is no option: Snakemake refuses it. The plugin's code reads it as "not asked for".
    """

    array_jobs: ClassVar[None] = None
    array_limit: ClassVar[int] = 1000
    disable_memory_fudge: ClassVar[bool] = False
    init_seconds_before_status_checks: ClassVar[None] = None
    no_account: ClassVar[bool] = False
    efficiency_report: ClassVar[bool] = False
    efficiency_report_path: ClassVar[None] = None
    efficiency_threshold: ClassVar[None] = None
    jobname_prefix: ClassVar[str] = ""
    status_command: ClassVar[None] = None
    status_attempts: ClassVar[None] = None
    pass_command_as_script: ClassVar[bool] = False
