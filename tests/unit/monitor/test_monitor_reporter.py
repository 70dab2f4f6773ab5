"""What a run prints of its jobs until it ends: what is new, and when."""

import sys
import threading
import time
from dataclasses import replace

import pytest
from jaxway.monitor import reporter
from jaxway.monitor.reporter import ProgressReporter, report_in_background
from jaxway.monitor.slurm_queue import Queue
from jaxway.monitor.status import JobStatus, job_statuses
from run_folder import CONFIG, LOCAL, METRICS, PROGRESS, SITE, submit, train


class Clock:
    """A reporter that reports one job's statuses, at times that a test chooses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.reporter = ProgressReporter(interval_s=30)

    def reported(
        self, stage: str, state: str, progress: str = "", seconds_later: float = 0
    ) -> list[str]:
        self.now += seconds_later
        status = JobStatus("17", "train gpt", stage, state, progress, "a line of the log")
        return [*self.reporter.lines([status])]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_pending_job_is_reported_once(clock) -> None:
    assert clock.reported("pending", "pending") == ["train gpt: pending"]
    assert clock.reported("pending", "pending", seconds_later=9999) == []


def test_start_that_becomes_known_is_reported_at_once(clock) -> None:
    clock.reported("pending", "pending")
    stage = "pending, start known"
    assert clock.reported(stage, "until 3") == ["train gpt: until 3"]
    assert clock.reported(stage, "until 4", seconds_later=599) == []
    assert clock.reported(stage, "until 4", seconds_later=1) == ["train gpt: until 4"]


def test_start_of_a_job_is_reported_once(clock) -> None:
    assert clock.reported("RUNNING", "runs for 1 s") == ["train gpt: runs for 1 s"]
    assert clock.reported("RUNNING", "runs for 2 s", seconds_later=9999) == []


def test_progress_is_reported_after_the_interval_if_it_is_new(clock) -> None:
    clock.reported("RUNNING", "runs")
    assert clock.reported("RUNNING", "runs", "step 1") == ["train gpt: step 1"]
    assert clock.reported("RUNNING", "runs", "step 2", seconds_later=29) == []
    assert clock.reported("RUNNING", "runs", "step 3", seconds_later=1) == ["train gpt: step 3"]
    assert clock.reported("RUNNING", "runs", "step 3", seconds_later=9999) == []


def test_start_known_to_slurm_is_another_stage(folder) -> None:
    queue, progress = Queue(SITE, interval_s=0, with_positions=False), ProgressReporter(30)
    reported: list[str] = []
    for start in ("N/A", "2099-01-02T03:04:00"):
        (folder / "queue").unlink()
        submit(state="PENDING", start=start)
        queue.refresh()
        reported += progress.lines(job_statuses(CONFIG, SITE, queue))
    expected = "train gpt: pending as job 17, expected to start Fri 02 Jan 03:04"
    assert reported == ["train gpt: pending as job 17", expected]


@pytest.fixture
def quick(monkeypatch) -> None:
    """A background that need not be waited for."""
    monkeypatch.setattr(reporter, "FILES_INTERVAL_S", 0.01)
    monkeypatch.setattr(reporter, "QUEUE_INTERVAL_S", 0)


def background_threads() -> list[threading.Thread]:
    return [x for x in threading.enumerate() if x.name.endswith("(report_progress)")]


def test_background_reports_until_its_end(folder, quick, capfd) -> None:
    submit()
    train(METRICS)
    output = ""
    with report_in_background(CONFIG, replace(SITE, job_page="https://h.org/{job}")):
        deadline = time.monotonic() + 30
        while "step" not in output and time.monotonic() < deadline:
            time.sleep(0.05)
            output += capfd.readouterr().err
    assert not background_threads()
    begin, step = output.splitlines()
    assert (
        begin[6:] == "train gpt: job 17 runs on jrc0101 for 41:10, 23:18:50 left, https://h.org/17"
    )
    assert step[6:] == f"train gpt: {PROGRESS}"


def test_bug_in_the_background_ends_nothing_else(folder, quick, monkeypatch, capfd) -> None:
    called = threading.Event()

    def broken(*_):
        called.set()
        raise ValueError("a bug")

    monkeypatch.setattr(reporter, "job_statuses", broken)
    with report_in_background(CONFIG, LOCAL):
        assert called.wait(30)
    assert capfd.readouterr() == ("", "")  # and pytest makes a thread's exception an error


def test_run_goes_on_without_a_thread(monkeypatch) -> None:
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with report_in_background(CONFIG, SITE):
        pass


def test_background_ends_with_a_run_that_fails(folder, quick) -> None:
    with pytest.raises(SystemExit), report_in_background(CONFIG, LOCAL):
        sys.exit(1)
    assert not background_threads()
