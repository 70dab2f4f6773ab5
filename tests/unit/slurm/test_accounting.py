"""What plans may cost and jobs have cost, with a stub of sacct; the cluster's tests ask it."""

import json
from pathlib import Path
from typing import Any

import pytest
from examples import make_job, make_placement, make_site, make_training
from jaxway import cli
from jaxway.config.jobs import SubmittedJob
from jaxway.slurm import accounting
from jaxway.slurm.accounting import JobUsage, estimate, node_hours
from jaxway.slurm.journal import JOURNAL, NOT_STARTED, Journal, Submission
from jaxway_shared.provenance import Provenance
from jaxway_shared.training import SEGMENTS, Segment, Segments
from submissions import make_submission

LONG = make_placement(nodes=2, walltime=90)  # 3 node-h


def test_estimate_counts_every_job_of_a_training() -> None:
    short = make_placement(walltime=60)
    jobs: dict[str, SubmittedJob] = {
        "smoke_test": make_job(walltime=6),
        "train.a": make_training(placement=LONG, max_jobs=10),
        "train.b": make_training(placement=short, max_jobs=1),
    }
    assert estimate(jobs, 0, 128) == [
        "smoke_test: 1 job, each 1 node and 6 minutes at most: 0.1 node-h = 12.8 core-h",
        "train: 2 to 11 jobs, each 2 nodes and 90 minutes at most: 31 node-h = 3,968 core-h",
        "at most 31.1 node-h = 3,981 core-h in all",
    ]
    assert estimate({"b": jobs["train.b"]}, 0, None)[-1] == "at most 1 node-h in all"
    assert node_hours([jobs["smoke_test"]], retries=2) == pytest.approx(0.3)


def test_estimate_fills_nodes_that_trainings_share() -> None:
    placement = make_placement(walltime=60, trainings_per_node=4)
    jobs: dict[str, SubmittedJob] = {
        f"train.{name}": make_training(placement=placement, max_jobs=2) for name in "abcde"
    }
    each = "each 1 node and 60 minutes at most, up to 4 on one node"
    assert estimate(jobs, 0, None)[0] == f"train: 5 to 10 jobs, {each}: 4 node-h"


def test_estimate_of_trainings_that_take_turns() -> None:
    """9 on 4 GPUs: 3 turns, also if 8 may share a job."""
    placement = make_placement(walltime=60, gpus_per_node=4, trainings_per_node=8)
    jobs: dict[str, SubmittedJob] = {
        f"train.{i}": make_training(placement=placement, max_jobs=1) for i in range(9)
    }
    each = "each 1 node and 60 minutes at most, up to 8 on one node, 4 at a time"
    assert estimate(jobs, 0, None)[0] == f"train: 9 jobs, {each}: 3 node-h"
    one = make_placement(walltime=60, gpus_per_node=1, trainings_per_node=3)
    jobs = {"train.a": make_training(placement=one, max_jobs=1)}
    each = "each 1 node and 60 minutes at most, up to 3 on one node, 1 at a time"
    assert estimate(jobs, 0, None)[0] == f"train: 1 job, {each}: 1 node-h"


RECORDED = """\
7|COMPLETED|2026-01-01T00:00:00|2026-01-01T00:00:05|3600|2|60
8|FAILED|2026-01-01T00:00:00|2026-01-01T00:10:00|300|1|60
9|TIMEOUT|2026-01-02T00:00:00|2026-01-02T00:00:00|60|1|1
10|CANCELLED by 1000|2026-01-02T00:00:00|None|0|1|1
"""


def make_segment(job: str, last_step: int) -> Segment:
    """What a job did that began at step 5."""
    names = ("time", "nodes", "python", "jax", "jaxlib", "numpy")
    values: dict[str, Any] = dict.fromkeys(Provenance.__dataclass_fields__)
    values |= dict.fromkeys(names, "")
    values |= {"job": job, "processes": 1, "devices": 1, "arguments": {}, "environment": {}}
    return Segment(5, last_step, 1.0, Provenance(**values))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose jobs Slurm knows: 9 brought its training further, 8 did not."""
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    for job, label in (
        *[("7", "smoke_test"), ("8", "train_run a"), ("9", "train_run b"), ("10", "train_run b")],
        ("", "train_run c"),  # not submitted
    ):
        journal.begin(make_submission(f"name{job}", label=label))
        journal.update(make_submission(f"name{job}"), id=job)
    for name, job, last in (("a", "8", 4), ("b", "9", 20)):
        file = tmp_path / f"scratch/train/{name}-1/{SEGMENTS}"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(Segments((make_segment(job, last),)).to_json()))
    (tmp_path / "scratch/train/broken-1").mkdir()
    (tmp_path / f"scratch/train/broken-1/{SEGMENTS}").write_text('{"first_step": 1}')
    sacct(tmp_path, RECORDED)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def sacct(folder: Path, output: str) -> None:
    """Makes the stub, which knows just these jobs, and leaves its arguments."""
    file = folder / "bin/sacct"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\necho \"$@\" > called\ncat <<'END'\n{output}END\n")
    file.chmod(0o755)


def submissions() -> list[Submission]:
    return [*Journal().read().values()]


def query(folder: Path) -> list[JobUsage]:
    return accounting.query_accounting(submissions(), folder / "scratch")


def wait(folder: Path) -> list[str]:
    """States of the jobs, when all ends are recorded."""
    usages = accounting.wait_for_accounting(submissions(), folder / "scratch")
    return [usage.state for usage in usages]


def test_usage_of_each_job_of_the_folder(folder: Path) -> None:
    jobs = query(folder)
    called = (folder / "called").read_text()
    assert "--jobs=7,8,9,10" in called
    assert "--duplicates" in called  # a job that was requeued has been paid more than once
    assert [job.name for job in jobs] == ["smoke_test", "train_run a", *["train_run b"] * 2]
    assert [job.no_progress for job in jobs] == [False, True, False, True]
    assert [job.queue_seconds for job in jobs] == [5, 600, 0, 0]
    assert [job.limit for job in jobs] == [3600, 3600, 60, 60]
    assert [job.node_hours for job in jobs] == pytest.approx([2, 300 / 3600, 60 / 3600, 0])


def test_usage_of_a_job_is_divided_by_those_that_share_it(folder: Path) -> None:
    """Of three in one job, one failed without progress."""
    for name, end in (("other", "FAILED"), ("third", "COMPLETED")):
        Journal().begin(make_submission(name, label=f"train_run {name}", id="9", end=end))
    shared = [job for job in query(folder) if job.job == "9"]
    assert [job.name for job in shared] == ["train_run b", "train_run other", "train_run third"]
    assert [job.node_hours for job in shared] == pytest.approx([20 / 3600] * 3)
    assert [job.no_progress for job in shared] == [False, True, False]
    # One whose turn had not come has no part of it.
    Journal().begin(make_submission("late", label="train_run late", id="9", end=NOT_STARTED))
    assert [job for job in query(folder) if job.job == "9"] == shared
    assert " by 4 jobs; " in accounting.summary(query(folder), make_site())


def test_slurm_is_asked_for_some_jobs_at_a_time(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(accounting, "JOBS_PER_QUERY", 3)
    sacct(folder, "")
    (folder / "bin/sacct").write_text('#!/bin/sh\necho "$@" >> called\n')
    query(folder)
    calls = (folder / "called").read_text().splitlines()
    assert [call.split("--jobs=")[1] for call in calls] == ["7,8,9", "10"]


def test_summary_names_jobs_without_progress(folder: Path) -> None:
    site = make_site(cores_per_node=128, job_page="https://h.org/{job}")
    assert accounting.summary(query(folder), site).splitlines() == [
        "used: 2.1 node-h = 268.8 core-h by 4 jobs; longest wait: 0:10:00",
        "no progress: 0.08333 node-h = 10.67 core-h by train_run a, job 8: FAILED, https://h.org/8",
        "no progress: 0 node-h = 0 core-h by train_run b, job 10: CANCELLED, https://h.org/10",
    ]


def test_end_that_is_not_recorded_yet_is_waited_for(folder: Path, monkeypatch) -> None:
    sacct(folder, RECORDED.replace("FAILED", "PENDING"))
    monkeypatch.setattr(accounting.time, "sleep", lambda seconds: sacct(folder, RECORDED))
    assert wait(folder) == ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"]


def test_end_that_is_never_recorded_stops_the_waiting(folder: Path, monkeypatch) -> None:
    sacct(folder, RECORDED.replace("FAILED", "RUNNING"))
    monkeypatch.setattr(accounting, "ACCOUNTING_TIMEOUT_S", 0.1)
    monkeypatch.setattr(accounting, "POLL_INTERVAL_S", 0.05)
    assert wait(folder)[1] == "RUNNING"


def cost(folder: Path) -> accounting.Cost:
    """What `jaxway cost` writes."""
    site = "{name: here, sif: a.sif, container: true, launcher: srun, scratch: s, platform: null, "
    (folder / "site.yaml").write_text(f"{site}gpus_per_node: 4, cores_per_node: 128}}")
    words = ["cost", "--site=site.yaml", "--scratch=scratch", "--out=cost.json"]
    run, args = cli.parse(words)
    run(args)
    return accounting.read_cost(folder / "cost.json")


def test_cost_is_read_as_it_was_written(folder: Path) -> None:
    written = cost(folder)
    assert (written.problem, written.cores_per_node) == (None, 128)
    assert list(written.jobs) == query(folder)


def test_failed_query_leaves_a_cost_that_says_so(folder: Path) -> None:
    (folder / "bin/sacct").unlink()
    written = cost(folder)
    assert written.jobs == ()
    assert written.problem == (
        "Slurm did not report what jobs have used (there is no sacct in PATH) [JW210]"
    )


def test_job_without_a_limit(folder: Path) -> None:
    sacct(folder, RECORDED.replace("|2|60", "|2|UNLIMITED"))
    assert query(folder)[0].limit is None


def test_without_jobs_slurm_is_not_asked(folder: Path) -> None:
    JOURNAL.unlink()
    assert query(folder) == []
    assert not (folder / "called").exists()
