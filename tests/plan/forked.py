"""Snakemake, forked from a process that has imported it: that takes longer than to plan."""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

TESTS = str(Path(__file__).parents[1])
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *(
            "snakemake.cli",
            "snakemake.report.html_reporter",
            "snakemake_logger_plugin_rich.handler",
        ),
        *("smart_open", "jaxway.job_functions", "jaxway.preflight.plan"),
    ]
)


def become(words: list[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    """In the fork: do what `python -m snakemake` would."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["snakemake", *words]
    sys.path[:] = ["", *(path for path in sys.path if not path.startswith(TESTS))]
    try:
        runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def snakemake(*words: str, folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run Snakemake; what it printed, and its exit code."""
    with tempfile.TemporaryDirectory() as output:
        process = FORKS.Process(target=become, args=(words, folder, environment, Path(output)))
        process.start()
        process.join()
        printed = [(Path(output) / name).read_text() for name in ("stdout", "stderr")]
    return CompletedProcess(words, process.exitcode or 0, *printed)
