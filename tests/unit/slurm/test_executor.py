"""The executor from a job to its end, with stubs of Snakemake's workflow and Slurm's commands."""

import dataclasses
import errno
import fcntl
import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jaxway.slurm import earlier_run, resubmission
from jaxway.slurm import executor as executor_module
from jaxway.slurm.executor import Executor
from jaxway.slurm.journal import JOURNAL, Journal
from jaxway_shared.training import LAST_CHECKPOINT_STEP, TrainingState
from snakemake_executor_plugin_jaxway import ExecutorSettings
from submissions import make_submission

SQUEUE = """
case "$*" in *--name=*) ;; *) exit;; esac
[ -e jobs ] && cat jobs
true
"""
SBATCH = """
echo "$@" >> sbatch.called
while [ "$1" != --job-name ]; do shift; done
id=$(($(cat jobs 2> /dev/null | wc -l) + 7))
echo "$id|$2|$(cat state)|jrc0101" >> jobs
echo $id
"""


class Scheduler:
    """What is reported to Snakemake."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.ended = threading.Event()

    def submit_callback(self, job: Any) -> None:
        self.reports.append("submitted")

    def finish_callback(self, job: Any) -> None:
        self.end("finished")

    def error_callback(self, job: Any) -> None:
        self.end("failed")

    def executor_error_callback(self, error: Exception) -> None:
        self.end(f"executor: {error}")

    def end(self, how: str) -> None:
        self.reports.append(how)
        self.ended.set()


class Resources(dict[str, Any]):
    """Resources of a job of Snakemake."""

    slurm_extra = None


def make_job(name: str = "evaluate") -> Any:
    """A job of Snakemake without inputs, outputs and resources."""
    return SimpleNamespace(
        name=name,
        resources=Resources(),
        wildcards=[],
        output=[],
        log=[f"logs/{name}.log"],
        threads=1,
        is_group=lambda: False,
        log_info=lambda: None,
        log_error=lambda *args, **kwargs: None,
        register=lambda external_jobid: None,
    )


class Wildcards(list[str]):
    """Wildcards of a training."""

    name = "small"


def make_training() -> Any:
    """A job of a training whose state is the folder `state-small`."""
    job = make_job("train_run")
    job.wildcards = Wildcards(["small"])
    job.resources |= {"training_state": "state-small", "max_jobs": 9}
    return job


class StubbedExecutor(Executor):
    """The executor, whose jobs run nothing."""

    def format_job_exec(self, job: Any) -> str:
        return "true"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with Slurm's commands; `state` is that of a new job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for module in (executor_module, earlier_run):
        monkeypatch.setattr(module, "work_of", lambda job: "abc")
    (tmp_path / "bin").mkdir()
    (tmp_path / ".snakemake").mkdir()
    others = dict.fromkeys(("sacct", "scontrol", "sinfo", "scancel"), 'echo "$@" >> $0.called')
    for name, script in {"squeue": SQUEUE, "sbatch": SBATCH, **others}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "state").write_text("COMPLETED")
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Executor]]:
    """Starts the executor."""
    handler, started = signal.getsignal(signal.SIGINT), []
    common = SimpleNamespace(init_seconds_before_status_checks=0)
    workflow = SimpleNamespace(
        dag=SimpleNamespace(needrun_jobs=list),
        executor_settings=ExecutorSettings(),
        executor_plugin=SimpleNamespace(common_settings=common),
        execution_settings=SimpleNamespace(latency_wait=0),
        remote_execution_settings=SimpleNamespace(
            max_status_checks_per_second=10,
            jobname="{jobid}",
            jobscript=None,
            immediate_submit=False,
        ),
        storage_settings=SimpleNamespace(shared_fs_usage=[]),
        main_snakefile="Snakefile",
        workdir_init=str(folder),
        scheduler=Scheduler(),
    )

    def start() -> Executor:
        started.append(StubbedExecutor(workflow, logging.getLogger("test")))
        return started[0]

    yield start
    started[0].shutdown()
    started[0]._run_lock.close()
    signal.signal(signal.SIGINT, handler)


def run(executor: Executor, job: Any) -> list[str]:
    """What is reported to Snakemake of a job, when that has ended."""
    executor.run_jobs([job])
    assert executor.workflow.scheduler.ended.wait(10)
    reports: list[str] = executor.workflow.scheduler.reports
    return reports


def test_job_that_has_completed(folder: Path, start) -> None:
    executor, job = start(), make_job()
    assert run(executor, job) == ["submitted", "finished"]
    executor.handle_job_success(job)
    (entry,) = Journal().read().values()
    assert (entry.id, entry.end) == ("7", "COMPLETED")


def test_reason_of_a_job_that_never_ran_is_in_its_log(folder: Path, start) -> None:
    (folder / "logs").mkdir()
    (folder / "logs/evaluate.log").write_text("of a run last week\n")
    (folder / "state").write_text("NODE_FAIL")
    assert run(start(), make_job()) == ["submitted", "failed"]
    log = (folder / "logs/evaluate.log").read_text()
    assert log.startswith("evaluate: job 7 ended in state NODE_FAIL on jrc0101; see logs/")


def test_failed_node_is_excluded_when_its_job_is_submitted_again(folder: Path, start) -> None:
    """Once, and for no other job: later Slurm knows itself whether the node is back."""
    executor = start()
    for name, state in [
        ("evaluate", "NODE_FAIL"),
        ("second", "FAILED"),
        *[("evaluate", "FAILED")] * 2,
    ]:
        (folder / "state").write_text(state)
        executor.workflow.scheduler.ended.clear()
        run(executor, make_job(name))
    calls = (folder / "sbatch.called").read_text().splitlines()
    assert ["--exclude=jrc0101" in call for call in calls] == [False, False, True, False]


def test_job_begins_when_one_with_other_settings_has_ended(folder: Path, start) -> None:
    earlier = make_submission("earlier", id="5", label="evaluate", work="other", outputs=("o",))
    Journal().begin(earlier)
    (folder / "jobs").write_text("5|earlier|RUNNING|jrc0102\n")
    executor, job = start(), make_job()
    job.output = ["o"]
    executor.dag.needrun_jobs = lambda: [job]
    assert run(executor, job) == ["submitted", "finished"]
    assert "--dependency=afterany:5 " in (folder / "sbatch.called").read_text()
    assert Journal().read()["earlier"].end == ""


def test_job_that_has_been_done_meanwhile_is_not_submitted(folder: Path, start) -> None:
    """Slurm has forgotten it; its output is newer than its line in the journal."""
    executor, job = start(), make_job()
    Journal().begin(make_submission(id="5", label="evaluate", outputs=("o",), begun=0))
    (folder / "o").touch()
    job.output = ["o"]
    executor.dag.needrun_jobs = lambda: [job]
    assert run(executor, job) == ["finished"]
    assert not (folder / "sbatch.called").exists()
    executor.handle_job_success(job)
    assert [each.end for each in Journal().read().values()] == ["COMPLETED"]


def test_training_whose_state_is_in_use_is_not_submitted(folder: Path, start, capsys) -> None:
    job = make_job("train_run")
    job.resources |= {"training_state": str(folder / "a-0123"), "max_jobs": 10}
    job.wildcards = SimpleNamespace(name="a", items=dict().items)
    (folder / "a-0123").mkdir()
    with (folder / "a-0123/lock").open("w") as lock:
        lock.write("host b, process 1, job 5")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(start(), job) == ["failed"]
    assert "a-0123 is in use by host b, process 1, job 5 [JW300]" in capsys.readouterr().err
    assert not (folder / "sbatch.called").exists()


def test_full_disk_fails_the_job_alone(folder: Path, start, monkeypatch, capsys) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    executor = start()
    monkeypatch.setattr(Journal, "begin", full)
    monkeypatch.setattr(Path, "write_text", full)
    assert run(executor, make_job()) == ["failed"]
    assert "evaluate: [Errno 28] No space left on device [JW203]" in capsys.readouterr().err


def test_full_disk_at_the_end_of_a_job_ends_no_run(folder: Path, start, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    executor, job = start(), make_job()
    monkeypatch.setattr(Journal, "begin", lambda *_: None)
    monkeypatch.setattr(Journal, "_append", full)
    run(executor, job)
    executor.handle_job_success(job)
    assert executor.workflow.scheduler.reports == ["submitted", "finished"]


def test_end_of_a_job_without_outputs_ends_no_other(folder: Path, start, capsys) -> None:
    (folder / "state").write_text("RUNNING")
    executor, jobs = start(), [make_job("one"), make_job("two")]
    submitted = threading.Semaphore(0)
    executor.workflow.scheduler.submit_callback = lambda job: submitted.release()
    for job in jobs:
        executor.run_jobs([job])
        assert submitted.acquire(timeout=10)
    executor.handle_job_success(jobs[0])
    executor.cancel()
    assert "Cancelled: 8 (two)." in capsys.readouterr().err


def write_state(step: int) -> None:
    Path("state-small").mkdir(exist_ok=True)
    (Path("state-small") / LAST_CHECKPOINT_STEP).write_text(str(step))


def test_training_goes_on_after_its_state_could_not_be_read(
    folder: Path, start, monkeypatch, capsys
) -> None:
    errors = [OSError(errno.ESTALE, "Stale file handle")] * 2
    newest = TrainingState.newest

    def flaky(base: Path) -> TrainingState | None:
        if (folder / "jobs").exists():  # the first one began without a state
            write_state(10)
            if errors:
                raise errors.pop()
        return newest(base)

    monkeypatch.setattr(TrainingState, "newest", flaky)
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
    def broken(base: Path) -> TrainingState | None:
        raise OSError(errno.EIO, "Input/output error")

    executor = start()
    monkeypatch.setattr(TrainingState, "newest", broken)
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
    assert (refusing / "logs/train_run.log").read_text() == line


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


def test_jobs_that_an_error_of_snakemake_leaves_are_named(folder: Path, start, capsys) -> None:
    (folder / "state").write_text("RUNNING")
    executor, submitted = start(), threading.Event()
    executor.workflow.scheduler.submit_callback = lambda job: submitted.set()
    executor.run_jobs([make_job()])
    assert submitted.wait(10)
    executor.shutdown()
    assert capsys.readouterr().err == "Jobs that the next run takes over: 7 (evaluate).\n"
    (entry,) = Journal().open_submissions().values()
    assert not entry.cancelled


def test_ctrl_c_names_jobs_of_an_earlier_run(folder: Path, start, capsys) -> None:
    executor = start()
    Journal().begin(make_submission(id="5"))
    executor.cancel()
    output = capsys.readouterr().err
    assert output == "Jobs of an earlier run may still run: 5 (train_run small).\n"


def test_ctrl_c_with_a_journal_of_another_version(folder: Path, start, capsys) -> None:
    executor = start()
    Journal().begin(make_submission())
    JOURNAL.write_text(JOURNAL.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    executor.cancel()
    assert capsys.readouterr().err == f"{JOURNAL} is of another version: delete it [JW001]\n"


def test_folder_for_jobs_files_is_made_once(folder: Path, start) -> None:
    start()
    assert len([*(folder / ".snakemake").glob("tmp.*")]) == 1


def test_job_keeps_of_slurms_variables_its_identity_and_the_configuration(start) -> None:
    prefix = start().get_job_exec_prefix(make_job())
    kept = {"SLURM_JOB_ID": "7", "SLURM_CONF": "/c"}
    dropped = dict.fromkeys(("SLURM_NTASKS", "SRUN_CPUS_PER_TASK", "SBATCH_ACCOUNT"), "1")
    environment = {"PATH": "/usr/bin:/bin", "SLURMLY": "b", **kept, **dropped}
    words = ["sh", "-c", f"{prefix} && env"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found.items() >= {"SLURMLY": "b", **kept}.items()
    assert not found.keys() & dropped.keys()


def test_options_that_are_followed() -> None:
    """Another one of the plugin's is either followed or not offered."""
    assert {option.name for option in dataclasses.fields(ExecutorSettings)} == {
        *("delete_logfiles_older_than", "exclude_failed_nodes", "keep_successful_logs", "logdir"),
        *("no_requeue", "partition_config", "qos", "requeue", "reservation"),
    }
