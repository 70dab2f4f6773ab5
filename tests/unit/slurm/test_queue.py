"""Where jobs are, with stubs of squeue and sacct."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jaxway.slurm import queue
from jaxway.slurm.queue import QueryError, SlurmJob, find_jobs

Stub = Callable[[str, str], None]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Makes a stub of a command from a script; its arguments are left in <command>.called."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(command: str, script: str) -> None:
        file = tmp_path / command
        file.write_text(f'#!/bin/sh\necho "$@" > {file}.called\n{script}\n')
        file.chmod(0o755)

    make("squeue", "true")
    make("sacct", "true")
    return make


def test_nothing_is_asked_about_no_job(stub: Stub, tmp_path: Path) -> None:
    assert find_jobs([]) == {}
    assert not (tmp_path / "squeue.called").exists()


def test_job_in_the_queue_needs_no_accounting(stub: Stub, tmp_path: Path) -> None:
    stub("squeue", "echo '7|a|RUNNING|jrc0101'; echo '8|b|PENDING|'")
    assert find_jobs(["a", "b"]) == {
        "a": SlurmJob("7", "a", "RUNNING", "jrc0101"),
        "b": SlurmJob("8", "b", "PENDING"),
    }
    assert not (tmp_path / "sacct.called").exists()


def test_accounting_knows_jobs_that_left_the_queue(stub: Stub, tmp_path: Path) -> None:
    stub("squeue", "echo '7|a|RUNNING|jrc0101'")
    stub("sacct", "echo '5|b|CANCELLED by 1001|jrc0102'; echo '6|c|TIMEOUT|None assigned'")
    jobs = find_jobs(["a", "b", "c", "unknown"])
    assert [(name, job.state, job.nodes) for name, job in jobs.items()] == [
        ("a", "RUNNING", "jrc0101"),
        ("b", "CANCELLED", "jrc0102"),
        ("c", "TIMEOUT", ""),
    ]
    asked = (tmp_path / "sacct.called").read_text().split("--name=")[1].split()[0]
    assert set(asked.split(",")) == {"b", "c", "unknown"}


def test_line_without_a_state_is_no_answer(stub: Stub) -> None:
    stub("squeue", "echo '7|a||'")
    with pytest.raises(QueryError, match="not a line about a job"):
        find_jobs(["a"])


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_failed_query_is_no_answer(stub: Stub, command: str) -> None:
    stub(command, "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(QueryError, match=f"^{command}: .*Unable to contact"):
        find_jobs(["a"])


def test_slow_query_is_no_answer(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUERY_TIMEOUT_S", 0.1)
    stub("squeue", "exec sleep 10")
    with pytest.raises(QueryError, match="did not answer within"):
        find_jobs(["a"])


def test_site_without_accounting_knows_the_queue_alone(stub: Stub) -> None:
    stub("squeue", "echo '7|a|COMPLETED|jrc0101'")
    stub("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert list(find_jobs(["a", "b"])) == ["a"]
