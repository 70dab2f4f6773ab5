"""Jobs side by side on a node: what each has of it, and what one's failure means for the others."""

import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from jaxway import share_node
from jaxway.config.schema import WORKFLOW
from jaxway.processes import KILL_WAIT_S
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
    words += ["--minutes=60"]
    logs = [f"{i}-%j.log" for i in range(len(commands))]
    words += ["--logs", *logs, "--commands", *commands]
    environment = os.environ | {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "4,5"}
    return subprocess.run(
        ["sh", "-c", f"exec {shlex.join(words)}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        start_new_session=True,
    )


def test_each_job_has_its_gpus_and_log_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    # The first one ends when the second has failed, and its end is that of all.
    waits = "echo $JAXWAY_GPUS; until [ -e failed ]; do sleep 0.01; done"
    # Slurm's SIGTERM is for all processes of a job.
    fails = "kill -TERM $PPID; echo $JAXWAY_GPUS; touch failed; exit 75"
    done = run(tmp_path, waits, fails)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert {(tmp_path / f"{i}-7.log").read_text() for i in (0, 1)} == {"4\n", "5\n"}


def test_a_job_alone_has_its_part(tmp_path: Path) -> None:
    assert run(tmp_path, "echo $JAXWAY_GPUS").returncode == 0
    assert (tmp_path / "0-7.log").read_text() in ("4\n", "5\n")


def test_next_job_begins_on_the_part_that_is_free(tmp_path: Path) -> None:
    """Also if the job before it has failed; its time begins then."""
    part = "echo $JAXWAY_GPUS:$(grep Cpus_allowed_list /proc/$$/status | cut -f2)"
    waits = f"{part}; until [ -e third ]; do sleep 0.01; done; date +%s"
    third = f"{part}; echo $SLURM_JOB_END_TIME; touch third"
    assert run(tmp_path, waits, f"date +%s; {part}; kill 0", third).returncode == 1
    logs = [(tmp_path / f"{i}-7.log").read_text().split() for i in range(3)]
    (other, after), (before, free), (used, end) = logs
    assert used == free != other
    assert int(before) <= int(end) - 60 * 60 <= int(after) + 1  # they are rounded


def test_nobody_has_more_time_than_the_job(monkeypatch, tmp_path: Path) -> None:
    end = int(time.time()) + 600
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    assert run(tmp_path, "echo $SLURM_JOB_END_TIME").returncode == 0
    assert (tmp_path / "0-7.log").read_text() == f"{end}\n"


def test_no_job_begins_after_sigterm(monkeypatch) -> None:
    """As when Slurm ends all: the job has failed, and those that had no turn leave no trace."""
    handlers, started = [], []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))

    def run_job(command: str, *_: object) -> bool:
        started.append(command)
        handlers[0](signal.SIGTERM, None)
        return True

    monkeypatch.setattr(share_node, "run_job", run_job)
    with pytest.raises(SystemExit, match="1"):
        share_node.run(
            Namespace(parts=1, gpus=1, minutes=60, logs=["0", "1"], commands=["first", "second"])
        )
    assert started == ["first"]


def start(script: str) -> subprocess.Popen[bytes]:
    """A shell that has printed a line, which says that it has come so far."""
    return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(
    "script",
    [
        "setsid sh -c 'echo $$; sleep 1000' & wait",  # it has a session of its own
        "(sh -c 'echo $$; exec sleep 1000' &); sleep 1000",  # it has lost its parent
    ],
)
def test_sigkill_for_all_processes_when_the_time_is_over(script: str) -> None:
    """Also for one whose parents ignore SIGTERM as it does."""
    with start(f"trap '' TERM; {script}") as process:
        assert process.stdout
        child = int(process.stdout.readline())
        assert share_node.wait(process, time.time()) is None
    assert process.returncode == -signal.SIGKILL
    while os.path.exists(f"/proc/{child}"):  # else this test does not end in time
        if ") Z " in Path(f"/proc/{child}/stat").read_text():
            break


def test_sigterm_comes_while_there_is_time_to_save() -> None:
    script = "trap 'echo saved; exit 75' TERM; echo begun; while :; do sleep 0.01; done"
    with start(script) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        end = time.time() + KILL_WAIT_S
        assert share_node.wait(process, end) is None
        assert process.stdout.read() == b"saved\n"
    assert process.returncode == 75


def test_log_says_that_the_time_was_over(monkeypatch, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert not share_node.run_job("sleep 1000", str(log), ["0"], 0)
    assert log.read_text() == "ended: its 0 minutes were over [JW205]\n"
