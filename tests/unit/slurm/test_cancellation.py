"""Jobs are cancelled, with a stub of scancel."""

import sys
import threading
from pathlib import Path

import pytest
from jaxway.slurm import cancellation
from jaxway.slurm.cancellation import cancel
from jaxway.slurm.outage import PatientQueue
from submissions import make_submission

JOBS = [make_submission("a", id="7"), make_submission("b", id="8"), make_submission("c")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cancellation, "CANCEL_INTERVAL_S", 0.01)
    monkeypatch.setattr(cancellation, "CANCEL_TIMEOUT_S", 0.3)
    return tmp_path


def scancel(folder: Path, script: str) -> None:
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{script}\n')
    (folder / "scancel").chmod(0o755)


def queue() -> PatientQueue:
    return PatientQueue(threading.Event())


def test_cancelled_jobs_are_listed(folder: Path, capsys) -> None:
    scancel(folder, "")
    cancel(JOBS, queue())
    assert (folder / "called").read_text().splitlines() == ["7 8", "--me --name=c"]
    line = "Cancelled: 7 (train_run small), 8 (train_run small), c (train_run small).\n"
    assert capsys.readouterr().err == line


def test_failing_scancel_is_repeated(folder: Path, capsys) -> None:
    scancel(folder, f"[ -e {folder}/once ] && exit 0; touch {folder}/once; exit 1")
    cancel(JOBS[:1], queue())
    assert capsys.readouterr().err.endswith("Cancelled: 7 (train_run small).\n")


class Pipe:
    """Standard error whose reader, such as `tee`, Ctrl-C has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_lost_terminal_keeps_no_job_from_being_cancelled(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Pipe())
    scancel(folder, f"[ -e {folder}/once ] && exit 0; touch {folder}/once; exit 1")
    cancel(JOBS[:1], queue())
    assert (folder / "called").read_text().splitlines() == ["7", "7"]


@pytest.mark.parametrize(
    "error", ["Kill job error on job id 7: Invalid job id specified", "Job/step already completed"]
)
def test_job_that_is_gone_keeps_none_from_being_cancelled(folder: Path, capsys, error: str) -> None:
    scancel(folder, f'case $1 in 7) echo "scancel: error: {error}" >&2; exit 1;; esac')
    cancel(JOBS, queue())
    calls = (folder / "called").read_text().splitlines()
    assert calls == ["7 8", "7", "8", "--me --name=c"]
    assert capsys.readouterr().err.startswith("Cancelled: 7 (train_run small), 8 ")


def test_only_what_failed_is_repeated_and_named(folder: Path, capsys) -> None:
    scancel(folder, "case $1 in --me) echo down >&2; exit 1;; esac")
    cancel(JOBS, queue())
    assert (folder / "called").read_text().count("7 8") == 1
    result = capsys.readouterr().err.splitlines()[-1]
    assert result.startswith("Not cancelled: c (train_run small) (scancel: down); later: ")


def test_what_is_not_cancelled_is_reported_with_the_command(folder: Path, capsys) -> None:
    scancel(folder, "echo down >&2; exit 1")
    cancel(JOBS, queue())
    outage, result = capsys.readouterr().err.splitlines()
    assert outage.startswith("Slurm did not answer (scancel: down)")
    assert result.startswith("Not cancelled: 7 (train_run small), ")
    assert result.endswith("later: `scancel 7 8 && scancel --me --name=c` [JW206]")


def test_nothing_is_printed_without_jobs(capsys) -> None:
    cancel([], queue())
    assert capsys.readouterr().err == ""
