"""When a training stops in time, and when it is taken for one that hangs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jaxway_job import watchdog
from jaxway_job.runtime import ProcessTopology
from jaxway_job.watchdog import CONTINUE, SAVE, STOP, Watchdog

ALONE = ProcessTopology(1, 0, ["here"], [0], "")
HANG_S = 0.8
# Steps of 0.3 s until the file `end` exists or, once `hang` exists, one that does not end.
STEPS = f"""
import pathlib, sys, time
from jaxway_job import watchdog
from jaxway_job.runtime import ProcessTopology
watchdog.HANG_REPORT_WAIT_S = 0
folder = pathlib.Path(sys.argv[1])
topology = ProcessTopology(1, 0, ["here"], [0], "")
dog = watchdog.Watchdog(folder, topology, save_minutes=1, hang_minutes={HANG_S / 60})
dog.start()
step = 0
while not (folder / "end").exists():
    step += 1
    dog.begin_step(step)
    for _ in range(30):
        time.sleep(60 if (folder / "hang").exists() else 0.01)
    (folder / "step").write_text(str(step))
"""


@pytest.fixture(autouse=True)
def own_signals():
    """Take back what a watchdog in this process does with signals."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def steps(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STEPS, tmp_path],
        env={"PYTHONPATH": str(Path(watchdog.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "step").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


def test_step_that_does_not_end_is_aborted(steps, tmp_path):
    (tmp_path / "hang").touch()
    _, stderr = steps.communicate(timeout=60)
    assert steps.returncode == 1
    assert "has not ended for 0.0133333 min; all processes answer: a device or" in stderr
    assert "[JW306]" in stderr


def test_process_that_was_stopped_and_continued_is_not_aborted(steps, tmp_path):
    steps.send_signal(signal.SIGSTOP)
    time.sleep(2 * HANG_S)
    steps.send_signal(signal.SIGCONT)
    before = (tmp_path / "step").read_text()
    while (tmp_path / "step").read_text() in ("", before):
        assert steps.poll() is None, steps.communicate()
        time.sleep(0.01)
    (tmp_path / "end").touch()
    assert steps.communicate(timeout=60) == (None, "")
    assert steps.returncode == 0


@pytest.mark.parametrize(
    ("left", "action"), [(3 * 5 + 2 * 7 + 9 + 30.1, CONTINUE), (3 * 5 + 2 * 7 + 9 + 29.9, STOP)]
)
def test_stops_while_there_is_time_to_validate_and_save(tmp_path, monkeypatch, left, action):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    monkeypatch.setenv("JAXWAY_DEADLINE", str(1000 + left))
    dog = Watchdog(tmp_path, ALONE, save_minutes=10, hang_minutes=10)
    assert dog.requested_action(step_seconds=5, save_seconds=7, validation_seconds=9) == action
    assert dog.stop_reason() == "time limit approaching"


def test_saves_when_the_last_checkpoint_is_old(tmp_path, monkeypatch):
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    dog = Watchdog(tmp_path, ALONE, save_minutes=1, hang_minutes=10)
    assert dog.requested_action(1, 1, 1) == CONTINUE
    clock += 61
    assert dog.requested_action(1, 1, 1) == SAVE
    dog.record_save()
    assert dog.requested_action(1, 1, 1) == CONTINUE


def test_processes_that_are_behind_or_do_not_respond_are_suspects(tmp_path):
    topology = ProcessTopology(4, 0, ["jrc0101", "jrc0102"], [0, 1], "")
    dog = Watchdog(tmp_path, topology, save_minutes=1, hang_minutes=1)
    dog.hang_dir.mkdir()
    for process, report in ((0, "7 jrc0101"), (1, "6 jrc0101"), (3, "7 jrc0102")):
        dog.report(process).write_text(report)
    assert dog.suspects() == (
        "process 1 on jrc0101 is at step 6, process 2 on jrc0102 is not responding"
    )
