"""What plans may cost and jobs have cost, with a stub of sacct; the cluster's tests ask it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examples import make_job, make_placement, make_training
from jaxway.config.jobs import SubmittedJob
from jaxway.slurm import accounting

PROVENANCE: dict[str, Any] = {
    **dict.fromkeys(("container", "commit", "site", "platform", "device_kind", "backend")),
    **dict.fromkeys(("time", "nodes", "python", "jax", "jaxlib", "numpy"), ""),
    **{"processes": 1, "devices": 1, "driver": None, "arguments": {}},
}
LONG = make_placement(nodes=2, walltime=90)  # 3 node-h


def test_what_is_foretold_counts_every_allocation() -> None:
    short = make_placement(walltime=60)
    jobs: dict[str, SubmittedJob] = {
        "smoke_test": make_job(walltime=6),
        "train.a": make_training(placement=LONG, max_jobs=10),
        "train.b": make_training(placement=short, max_jobs=1),
    }
    assert accounting.foretold(jobs, 0, 128) == [
        "smoke_test: 1 job, each 1 node and 6 minutes at most: 0.1 node-h = 12.8 core-h",
        "train: 2 to 11 jobs, each 2 nodes and 90 minutes at most: 31 node-h = 3,968.0 core-h",
        "at most 31.1 node-h = 3,980.8 core-h in all",
    ]
    assert accounting.foretold({"b": jobs["train.b"]}, 0, None)[-1] == "at most 1 node-h in all"
    assert accounting.node_hours([jobs["smoke_test"]], retries=2) == pytest.approx(0.3)


BOOKED = """\
7|run1|COMPLETED|2026-01-01T00:00:00|2026-01-01T00:00:05|3600|2|60
8|run1|FAILED|2026-01-01T00:00:00|2026-01-01T00:10:00|300|1|60
9|run2|TIMEOUT|2026-01-02T00:00:00|2026-01-02T00:00:00|60|1|1
10|run2|CANCELLED by 1000|2026-01-02T00:00:00|None|0|1|1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose jobs Slurm knows: 9 brought its training further, 8 did not."""
    monkeypatch.chdir(tmp_path)
    for log in (
        "smoke_test/other",
        "smoke_test/7",
        "train_run/a/8",
        "train_run/b/9",
        "train_run/b/10",
    ):
        file = tmp_path / f"logs/rule_{log}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name, job, last in (("a", "8", 4), ("b", "9", 20)):
        provenance = PROVENANCE | {"job": job}
        segment = {"first_step": 5, "last_step": last, "seconds": 1, "provenance": provenance}
        file = tmp_path / f"scratch/train/{name}-1/segments.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"schema_version": 2, "segments": [segment]}))
    (tmp_path / "scratch/train/broken-1").mkdir()
    (tmp_path / "scratch/train/broken-1/segments.json").write_text('{"segments": []}')
    sacct(tmp_path, BOOKED)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def sacct(folder: Path, says: str) -> None:
    """Makes the stub, which knows just these jobs, and leaves what it was asked."""
    file = folder / "bin/sacct"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\necho \"$@\" > asked\ncat <<'END'\n{says}END\n")
    file.chmod(0o755)


def used(folder: Path) -> list[accounting.Job]:
    return accounting.used(folder / "logs", folder / "scratch")


def test_jobs_of_the_folder(folder: Path) -> None:
    jobs = used(folder)
    asked = (folder / "asked").read_text()
    assert "--jobs=7,8,9,10" in asked
    assert "--duplicates" in asked  # a job that was requeued has been paid more than once
    assert [job["what"] for job in jobs] == ["smoke_test", "train_run a", *["train_run b"] * 2]
    assert [job["wasted"] for job in jobs] == [False, True, False, True]
    assert [job["waited"] for job in jobs] == [5, 600, 0, 0]
    assert [job["limit"] for job in jobs] == [3600, 3600, 60, 60]
    assert accounting.hours(jobs) == pytest.approx(2 + 300 / 3600 + 60 / 3600)


def test_what_was_wasted_is_said(folder: Path) -> None:
    assert accounting.told(used(folder), 128).splitlines() == [
        "used: 2.1 node-h = 268.8 core-h by 4 jobs; the longest wait was 0:10:00",
        "wasted: 0.08333 node-h = 10.67 core-h by train_run a, job 8: FAILED",
        "wasted: 0 node-h = 0 core-h by train_run b, job 10: CANCELLED",
    ]


def test_an_end_that_is_not_booked_yet_is_waited_for(folder: Path, monkeypatch) -> None:
    sacct(folder, BOOKED.replace("FAILED", "PENDING"))
    monkeypatch.setattr(accounting.time, "sleep", lambda seconds: sacct(folder, BOOKED))
    assert [job["state"] for job in accounting.booked(folder / "logs", folder / "scratch")] == [
        *["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"]
    ]


def test_an_end_that_is_never_booked_is_not_waited_for_without_end(folder, monkeypatch) -> None:
    sacct(folder, BOOKED.replace("FAILED", "RUNNING"))
    now = iter(range(0, 1000, 4))
    clock = SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: next(now))
    monkeypatch.setattr(accounting, "time", clock)
    jobs = accounting.booked(folder / "logs", folder / "scratch")
    assert [job["state"] for job in jobs][1] == "RUNNING"
    assert next(now) <= 20


def run(folder: Path) -> dict:
    """Result of the program."""
    (folder / "site.yaml").write_text("cores_per_node: 128\n")
    line = [
        sys.executable,
        "-m",
        "jaxway",
        "cost",
        "--logs=logs",
        "--site=site.yaml",
        "--scratch=scratch",
    ]
    subprocess.run([*line, "--out=cost.json"], check=True)
    return json.loads((folder / "cost.json").read_text())


def test_result(folder: Path) -> None:
    result = run(folder)
    assert (result["problem"], result["cores_per_node"]) == (None, 128)
    assert len(result["jobs"]) == 4


def test_silent_accounting_stops_nothing(folder: Path) -> None:
    (folder / "bin/sacct").unlink()
    result = run(folder)
    assert result["jobs"] == []
    assert result["problem"].startswith("Slurm's accounting does not tell what jobs have used")


def test_job_without_a_limit(folder: Path) -> None:
    sacct(folder, BOOKED.replace("|2|60", "|2|UNLIMITED"))
    assert used(folder)[0]["limit"] is None


def test_without_jobs_slurm_is_not_asked(folder: Path) -> None:
    assert accounting.used(folder / "nothing", folder / "scratch") == []
    assert not (folder / "asked").exists()
