"""Jobs side by side on a node: what each has of it, and what one's failure means for the others."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jaxway.config.schema import WORKFLOW
from jaxway.share_node import allocated_gpus, allowed_cores, split


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (4, [[0], [1], [2], [3]]),
        (8, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (6, [[0], [1, 2], [3], [4, 5]]),
        (2, [[], [0], [], [1]]),
    ],
)
def test_parts_are_equal_and_contiguous(count: int, parts: list[list[int]]) -> None:
    assert split(range(count), 4) == [range(*(p and (p[0], p[-1] + 1)) or (0, 0)) for p in parts]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("4,5", ["4", "5"]), (None, ["0", "1"]), ("", ["0", "1"]), ("3", ["0", "1"])],
)
def test_gpus_are_those_that_slurm_names(visible: str | None, gpus: list[str]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert allocated_gpus(2, environ) == gpus


def test_threads_of_all_cores_are_those_of_the_process() -> None:
    threads = [thread for core in allowed_cores() for thread in core]
    assert sorted(threads) == sorted(os.sched_getaffinity(0))


def run(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """`jaxway share-node` with 2 GPUs in 2 parts and a log for each command, as job 7."""
    words = [sys.executable, str(WORKFLOW / "jaxway"), "share-node", "--parts=2", "--gpus=2"]
    logs = [f"{i}-%j.log" for i in range(len(commands))]
    words += ["--logs", *logs, "--commands", *commands]
    environment = os.environ | {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "4,5"}
    return subprocess.run(
        ["sh", "-c", f"exec {shlex.join(words)}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_each_job_has_its_gpus_and_log_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    # The first one ends when the second has failed, and its end is that of all.
    waits = "until [ -e failed ]; do sleep 0.01; done; echo $JAXWAY_GPUS"
    # Slurm's SIGTERM is for all processes of a job.
    fails = "kill -TERM $PPID; echo $JAXWAY_GPUS; touch failed; exit 75"
    done = run(tmp_path, waits, fails)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert (tmp_path / "0-7.log").read_text() == "4\n"
    assert (tmp_path / "1-7.log").read_text() == "5\n"


def test_a_job_alone_has_its_part(tmp_path: Path) -> None:
    assert run(tmp_path, "echo $JAXWAY_GPUS").returncode == 0
    assert (tmp_path / "0-7.log").read_text() == "4\n"
