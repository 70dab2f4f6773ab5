"""Slurm's queue: when it is asked, and what is shown of the jobs in it."""

import time

import pytest
from jaxway.monitor import follow, slurm_queue
from jaxway.monitor.slurm_queue import Queue, QueuedJob
from jaxway.monitor.status import step_and_name
from run_folder import SITE, shown, submit


def test_pending_job_shows_reason_position_and_start(folder) -> None:
    pending = {"state": "PENDING", "nodes": "", "reason": "Priority"}
    submit(comment="rule_smoke_test", start="2099-01-02T03:04:00", **pending)
    (folder / "pending").write_text("dc-gpu 3\ndc-gpu-devel 6\ndc-gpu 17\nother,dc-gpu 4\n")
    assert shown() == {
        "smoke_test": "pending as job 17 (Priority), position 2 of 3 in dc-gpu, "
        "expected to start Fri 02 Jan 03:04"
    }


def test_start_today_is_a_time_of_day() -> None:
    assert slurm_queue.short_time(time.strftime("%Y-%m-%dT23:59:00")) == "23:59"


def test_unknown_start_is_left_out() -> None:
    assert slurm_queue.short_time("N/A") == ""
    job = QueuedJob("1", "PENDING", "", "p", "0:00", "1:00", "N/A", "", "None", "/")
    assert slurm_queue.pending_text(job, "") == "pending as job 1"


def test_jobs_of_others_and_of_other_folders_are_left_out(folder) -> None:
    submit(folder="/elsewhere")
    submit(comment="(null)")
    assert shown() == {"": "no job is running or pending"}


def test_trainings_that_share_a_job_are_shown_one_by_one(folder) -> None:
    submit(comment="rule_train_run_wildcards_gpt,gpt-b", state="PENDING", reason="Priority")
    pending = "pending as job 17 (Priority)"
    assert {label: text[: len(pending)] for label, text in shown().items()} == {
        "train gpt": pending,
        "train gpt-b": pending,
    }


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        ("rule_train_run_wildcards_gpt-learning_rate=0.1", ("train", "gpt-learning_rate=0.1")),
        ("rule_theirs_train_run_wildcards_gpt", ("train", "gpt")),  # in a module
        ("rule_smoke_test", ("smoke_test", "")),
        ("rule_own_wildcards_a", ("own", "a")),
    ],
)
def test_comment_names_step_and_job(comment, name) -> None:
    assert step_and_name(comment) == name


def test_last_known_jobs_stay_while_slurm_is_down(folder, monkeypatch) -> None:
    submit()
    queue = Queue(SITE, interval_s=0, with_positions=True)
    queue.refresh()
    (folder / "fails").write_text("squeue: error: Unable to contact\nslurm controller\n")
    queue.refresh()
    assert queue.problem == "not responding: slurm controller"
    assert [job.id for job in queue.jobs] == ["17"]
    (folder / "fails").unlink()
    queue.refresh()
    assert not queue.problem
    monkeypatch.setenv("PATH", "/nowhere")
    queue.refresh()
    assert "there is no squeue" in queue.problem


def test_slurm_that_is_down_is_shown(folder) -> None:
    (folder / "fails").write_text("slurm controller is down")
    assert shown() == {"Slurm": "not responding: slurm controller is down"}


def test_slurm_is_asked_one_thing_at_a_time_and_no_sooner_than_the_interval(
    folder, monkeypatch
) -> None:
    submit(state="PENDING")
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    queue = Queue(SITE, follow.QUEUE_INTERVAL_S, with_positions=True)
    asked = []
    for _ in range(121):
        before = (folder / "asked").read_text() if (folder / "asked").exists() else ""
        queue.refresh()
        new = (folder / "asked").read_text().removeprefix(before).splitlines()
        asked += [(clock - 1000, "--states=PENDING" in line) for line in new]
        clock += 1
    assert [when for when, _ in asked] == [10.0 * i for i in range(13)]
    assert [when for when, positions in asked if positions] == [10, 70]


def test_settings_of_the_user_change_no_answer(folder, monkeypatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "FAILED")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    (folder / "bin/squeue").write_text("#!/bin/sh\necho $SQUEUE_STATES-$SLURM_TIME_FORMAT\n")
    assert slurm_queue.squeue() == ["-standard"]
