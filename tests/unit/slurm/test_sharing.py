"""Trainings that share a node in the executor: one job of Slurm, and an end for each of them."""

import shlex
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from executor_stubs import make_training
from jaxway.slurm import sharing
from jaxway.slurm.executor import Executor
from jaxway.slurm.journal import Journal
from submissions import make_submission


@pytest.fixture(autouse=True)
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it takes until there are two."""
    monkeypatch.setattr(sharing, "GATHER_S", 600)


def make_trainings(*names: str, **resources: Any) -> list[Any]:
    """Jobs of trainings of which two share a node; each has a result."""
    asked = {"trainings_per_node": 2, "tasks_per_node": 2, "gres": "gpu:4", "runtime": 5}
    asked |= resources
    jobs = [make_training(name, **asked) for name in names]
    for job in jobs:
        job.output = [f"{job.wildcards.name}.json"]
    return jobs


def run(executor: Executor, jobs: list[Any], turns: str = "abcdef") -> dict[str, str]:
    """How each training ended, when all have; ``turns``: those to which their job comes."""
    ends: dict[str, str] = {}
    ended = threading.Semaphore(0)

    def end(how: str) -> Any:
        def callback(job: Any) -> None:
            ends[job.wildcards.name] = how
            ended.release()

        return callback

    scheduler = executor.workflow.scheduler
    submit_callback = scheduler.submit_callback

    def submitted(job: Any) -> None:
        for each in Journal().read().values():
            own = each.label == f"train_run {job.wildcards.name}" and not each.end
            if own and job.wildcards.name in turns:
                Path(each.log_file).touch()
        submit_callback(job)

    scheduler.submit_callback = submitted
    scheduler.finish_callback, scheduler.error_callback = end("finished"), end("failed")
    executor.run_jobs(jobs)
    for _ in jobs:
        assert ended.acquire(timeout=10)
    return ends


def calls(folder: Path) -> list[list[str]]:
    """Words of each call of sbatch."""
    return [*map(shlex.split, (folder / "sbatch.called").read_text().splitlines())]


def test_trainings_share_a_job(folder: Path, start) -> None:
    assert run(start(), make_trainings("a", "b")) == {"a": "finished", "b": "finished"}
    entries = Journal().read().values()
    (name,) = {each.shared_job for each in entries}
    assert len({each.log_file for each in entries}) == 2
    (words,) = calls(folder)
    assert {"share-node", "--parts=2", "--gpus=4", "--minutes=5"} <= {*words}
    assert "--time=10" not in words
    assert words[words.index("--job-name") + 1] == name
    assert words[-2:] == ["true", "true"]
    names = ",".join(each.label.removeprefix("train_run ") for each in entries)
    assert words[words.index("--comment") + 1] == f"rule_train_run_wildcards_{names}"


def test_one_without_others_has_its_part_of_a_node(folder: Path, start, monkeypatch) -> None:
    monkeypatch.setattr(sharing, "GATHER_S", 0)
    assert run(start(), make_trainings("a")) == {"a": "finished"}
    (words,) = calls(folder)
    assert "share-node" in words
    assert words[-2:] == ["--commands", "true"]


def test_trainings_beyond_the_gpus_take_turns(folder: Path, start) -> None:
    names = [*"abcde"]
    run(start(), make_trainings(*names, trainings_per_node=5, tasks_per_node=4))
    (words,) = calls(folder)
    assert {"--parts=4", "--gpus=4", "--minutes=5", "--time=10"} <= {*words}
    assert words[-6:] == ["--commands", *["true"] * 5]


@pytest.mark.parametrize(("count", "minutes"), [(1, None), (4, None), (5, 10), (8, 10), (9, 15)])
def test_time_of_a_job_is_that_of_all_turns(count: int, minutes: int | None) -> None:
    jobs = make_trainings(*map(str, range(count)), trainings_per_node=16, tasks_per_node=4)
    assert sharing.time_limit([(job, make_submission()) for job in jobs]) == minutes


@pytest.mark.parametrize(
    ("asked", "number"), [({"runtime": 9}, 1), ({"trainings_per_node": 4}, 1), ({}, 2)]
)
def test_trainings_that_ask_for_something_else_do_not_share(asked, number) -> None:
    (a, b), (other,) = make_trainings("a", "b"), make_trainings("other", **asked)
    assert sharing.kind_of(a, make_submission()) == sharing.kind_of(b, make_submission())
    kind = sharing.kind_of(other, make_submission(number=number))
    assert kind != sharing.kind_of(a, make_submission())


def test_one_that_fails_leaves_the_others_result(folder: Path, start, capsys) -> None:
    (folder / "state").write_text("FAILED")
    executor = start()
    executor.workflow.scheduler.submit_callback = lambda job: Path("a.json").touch()
    jobs = make_trainings("a", "b")
    assert run(executor, jobs) == {"a": "finished", "b": "failed"}
    for job in jobs:
        executor.handle_job_success(job)
    assert {each.end for each in Journal().read().values()} == {"COMPLETED"}
    output = capsys.readouterr().err
    assert "Training b stopped: no progress past step 0 (job 7 ended in state FAILED" in output


@pytest.mark.parametrize(
    ("state", "end"), [("NODE_FAIL", "finished"), ("CANCELLED", "failed"), ("FAILED", "finished")]
)
def test_one_whose_turn_had_not_come(folder: Path, start, monkeypatch, capsys, state, end) -> None:
    """It is submitted again, unless somebody has cancelled its job, and pays nothing."""
    (folder / "state").write_text(state)

    def next_one_succeeds(job: Any) -> None:
        monkeypatch.setattr(sharing, "GATHER_S", 0)
        (folder / "state").write_text("COMPLETED")

    executor = start()
    executor.workflow.scheduler.submit_callback = next_one_succeeds
    assert run(executor, make_trainings("a", "b"), turns="a") == {"a": "failed", "b": end}
    output = capsys.readouterr().err
    assert "Training a stopped: " in output
    ends = [each.end for each in Journal().read().values() if each.label == "train_run b"]
    if end == "finished":
        assert f"Training b: resuming from step 0 (job 7 ended in state {state} on" in output
        assert ends == ["NOT STARTED", ""]


def test_result_of_an_earlier_run_is_no_success(folder: Path, start) -> None:
    Path("a.json").touch()
    (folder / "state").write_text("FAILED")
    assert run(start(), make_trainings("a", "b")) == {"a": "failed", "b": "failed"}


def test_refusal_fails_all_that_would_share(folder: Path, start, capsys) -> None:
    (folder / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no' >&2; exit 1\n")
    assert run(start(), make_trainings("a", "b")) == {"a": "failed", "b": "failed"}
    assert capsys.readouterr().err.count("train_run b") == 2
    assert {each.end for each in Journal().read().values()} == {"REFUSED"}


def test_ctrl_c_cancels_a_shared_job_once(folder: Path, start) -> None:
    (folder / "state").write_text("RUNNING")
    executor, submitted = start(), threading.Semaphore(0)
    executor.workflow.scheduler.submit_callback = lambda job: submitted.release()
    executor.run_jobs(make_trainings("a", "b"))
    assert submitted.acquire(timeout=10) and submitted.acquire(timeout=10)
    executor.cancel()
    assert (folder / "bin/scancel.called").read_text() == "7\n"


def test_ctrl_c_while_a_training_waits_for_others(folder: Path, start) -> None:
    executor = start()
    executor.run_jobs(make_trainings("a"))
    executor.cancel()
    assert not (folder / "sbatch.called").exists()


def test_next_run_takes_over_a_shared_job(folder: Path, start, monkeypatch) -> None:
    """Of two that shared one, which failed, the first had its result."""
    monkeypatch.setattr(sharing, "GATHER_S", 0)
    shared = make_submission(id="5", shared_job="both", begun=0.0)
    for name in ("a", "b"):
        own = {"name": name, "label": f"train_run {name}", "outputs": (f"{name}.json",)}
        Journal().begin(replace(shared, **own))
    (folder / "jobs").write_text("5|both|FAILED|jrc0101\n")
    (folder / "a.json").touch()
    executor, jobs = start(), make_trainings("a", "b")
    executor.dag.needrun_jobs = lambda: jobs
    assert run(executor, jobs) == {"a": "finished", "b": "finished"}
    assert [each.label for each in Journal().read().values() if each.id == "8"] == ["train_run b"]
