"""The executor, with stubs of Snakemake's workflow and Slurm's commands."""

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from executor_stubs import SBATCH, SQUEUE, Scheduler, StubbedExecutor
from jaxway import interrupt
from jaxway.slurm import earlier_run
from jaxway.slurm import executor as executor_module
from jaxway.slurm.executor import Executor
from snakemake_executor_plugin_jaxway import ExecutorSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with Slurm's commands; `state` is that of a new job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for module in (executor_module, earlier_run):
        monkeypatch.setattr(module, "work_of", lambda job: "abc")
    (tmp_path / "bin").mkdir()
    (tmp_path / ".snakemake").mkdir()
    others = dict.fromkeys(("sacct", "scontrol", "sinfo", "scancel"), 'echo "$@" >> $0.called')
    for name, script in {"squeue": SQUEUE, "sbatch": SBATCH, **others}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "state").write_text("COMPLETED")
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Executor]]:
    """Starts the executor."""
    handler, started = signal.getsignal(signal.SIGINT), []
    common = SimpleNamespace(init_seconds_before_status_checks=0)
    workflow = SimpleNamespace(
        dag=SimpleNamespace(needrun_jobs=list),
        executor_settings=ExecutorSettings(),
        executor_plugin=SimpleNamespace(common_settings=common),
        execution_settings=SimpleNamespace(latency_wait=0),
        remote_execution_settings=SimpleNamespace(
            max_status_checks_per_second=10,
            jobname="{jobid}",
            jobscript=None,
            immediate_submit=False,
        ),
        storage_settings=SimpleNamespace(shared_fs_usage=[]),
        main_snakefile="Snakefile",
        workdir_init=str(folder),
        scheduler=Scheduler(),
    )

    def start() -> Executor:
        started.append(StubbedExecutor(workflow, logging.getLogger("test")))
        return started[0]

    yield start
    started[0].shutdown()
    started[0]._run_lock.close()
    signal.signal(signal.SIGINT, handler)
    interrupt.requested.clear()
