"""Snakemake's executor `jaxway`: jobs on Slurm. Snakemake finds it by this module's name."""

from dataclasses import dataclass, field
from typing import Optional

from jaxway.slurm.executor import Executor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings
from snakemake_interface_common.exceptions import WorkflowError

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(SlurmSettings):
    """Options --jaxway-..., in a profile jaxway-...: those of the Slurm plugin."""

    status_command: Optional[str] = field(  # noqa: UP045, since Snakemake knows no other form
        default=None, metadata={"help": "Not used: squeue is asked, then sacct."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.array_jobs:
            raise WorkflowError("--jaxway-array-jobs: this executor submits no job arrays")
