"""A training's jobs in the executor, one after the other."""

import errno
import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest
from executor_stubs import SBATCH, make_training, run
from jaxway.slurm import executor as executor_module
from jaxway.slurm import resubmission
from jaxway.slurm.journal import Journal
from jaxway_shared.training import LAST_CHECKPOINT_STEP, TrainingState


def test_training_whose_state_is_in_use_is_not_submitted(folder: Path, start, capsys) -> None:
    (folder / "state-small").mkdir()
    with (folder / "state-small/lock").open("w") as lock:
        lock.write("host b, process 1, job 5")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(start(), make_training()) == ["failed"]
    assert "state-small is in use by host b, process 1, job 5 [JW300]" in capsys.readouterr().err
    assert not (folder / "sbatch.called").exists()


def write_state(step: int) -> None:
    Path("state-small").mkdir(exist_ok=True)
    (Path("state-small") / LAST_CHECKPOINT_STEP).write_text(str(step))


def test_training_goes_on_after_its_state_could_not_be_read(
    folder: Path, start, monkeypatch, capsys
) -> None:
    errors = [OSError(errno.ESTALE, "Stale file handle")] * 2
    find = TrainingState.find

    def flaky(link: Path) -> TrainingState | None:
        if (folder / "jobs").exists():  # the first one began without a state
            write_state(10)
            if errors:
                raise errors.pop()
        return find(link)

    monkeypatch.setattr(TrainingState, "find", flaky)
    monkeypatch.setattr(resubmission, "POLL_INTERVAL_S", 0.01)
    (folder / "state").write_text("TIMEOUT")
    executor = start()
    executor._latency_wait = 60
    assert run(executor, make_training()) == ["submitted", "submitted", "failed"]
    output = capsys.readouterr().err
    assert "Training small: resuming from step 10 (job 7 ended in state TIMEOUT" in output
    assert "Training small stopped: no progress past step 10 (job 8" in output


def test_training_whose_state_stays_unreadable_stops(
    folder: Path, start, monkeypatch, capsys
) -> None:
    def broken(link: Path) -> TrainingState | None:
        raise OSError(errno.EIO, "Input/output error")

    executor = start()
    monkeypatch.setattr(TrainingState, "find", broken)
    monkeypatch.setattr(resubmission, "POLL_INTERVAL_S", 0.01)
    assert run(executor, make_training()) == ["failed"]
    reason = "its state cannot be read: state-small: Input/output error"
    assert capsys.readouterr().err == f"Training small stopped: {reason} [JW204]\n"


REFUSAL = """
[ -s refusals ] && { sed -i 1d refusals; echo 'sbatch: error: QOSMaxSubmitJob' >&2; exit 1; }
"""


@pytest.fixture
def refusing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; sbatch refuses as many jobs as the file `refusals` has lines."""
    monkeypatch.setattr(executor_module, "REFUSAL_INTERVAL_S", 0.01)
    (folder / "bin/sbatch").write_text(f"#!/bin/sh\n{REFUSAL}{SBATCH}")
    return folder


def save_and_refuse_the_next(job: Any) -> None:
    """A training's job saves a checkpoint, and Slurm refuses the next one three times."""
    write_state(10)
    Path("refusals").write_text("\n" * 3)


def test_first_job_that_slurm_refuses_fails(refusing: Path, start, capsys) -> None:
    (refusing / "refusals").write_text("\n")
    assert run(start(), make_training()) == ["failed"]
    line = "Slurm refused train_run small: QOSMaxSubmitJob [JW202]\n"
    assert capsys.readouterr().err == line
    assert (refusing / "logs/train/small.log").read_text() == line


def test_next_job_that_slurm_refuses_is_submitted_again(refusing: Path, start, capsys) -> None:
    (refusing / "state").write_text("TIMEOUT")
    executor = start()
    executor.workflow.scheduler.submit_callback = save_and_refuse_the_next
    assert run(executor, make_training()) == ["failed"]
    output = capsys.readouterr().err
    assert output.count("Slurm refused train_run small: QOSMaxSubmitJob; asking again.") == 1
    assert "no progress past step 10 (job 8 " in output
    ends = [each.end for each in Journal().read().values()]
    assert ends == ["TIMEOUT", ""]  # Snakemake was not told to take note of the last one


def test_ctrl_c_ends_a_refused_training(refusing: Path, start, monkeypatch, capsys) -> None:
    monkeypatch.setattr(executor_module, "REFUSAL_INTERVAL_S", 60)
    (refusing / "state").write_text("TIMEOUT")
    executor, refused = start(), threading.Event()
    monkeypatch.setattr(executor._queue, "report_refusal", lambda *_: refused.set())
    executor.workflow.scheduler.submit_callback = save_and_refuse_the_next
    executor.run_jobs([make_training()])
    assert refused.wait(10)
    executor.cancel()
    assert [each.end for each in Journal().read().values()] == ["TIMEOUT", "REFUSED"]
    assert "Cancelled" not in capsys.readouterr().err
