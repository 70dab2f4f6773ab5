"""The executor from a job to its end, with stubs of Snakemake's workflow and Slurm's commands."""

import dataclasses
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from executor_stubs import make_job, run
from jaxway.slurm import polling
from jaxway.slurm.journal import JOURNAL, Journal
from snakemake_executor_plugin_jaxway import ExecutorSettings
from submissions import make_submission


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


def test_reason_of_a_failure_is_printed_without_advice(folder: Path, start) -> None:
    (folder / "state").write_text("FAILED")
    job, printed = make_job(), []
    job.log_error = lambda message, **_: printed.append(message)
    assert run(start(), job) == ["submitted", "failed"]
    log = folder / ".snakemake/slurm_logs/rule_evaluate/7.log"
    logs = f"logs/evaluate.log and {log}"
    assert printed == [f"evaluate: job 7 ended in state FAILED on jrc0101; see {logs} [JW205]"]


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


def test_failed_node_is_excluded_beside_the_configured_ones(folder: Path, start) -> None:
    executor, job = start(), make_job()
    job.resources.slurm_extra = "--exclude=jrc0200,jrc[0300-0301]"
    job.resources["slurm_extra"] = job.resources.slurm_extra
    (folder / "state").write_text("NODE_FAIL")
    for _ in range(2):
        executor.workflow.scheduler.ended.clear()
        run(executor, job)
    calls = (folder / "sbatch.called").read_text().splitlines()
    last = [call.split("--exclude=")[-1].split()[0] for call in calls]
    assert last == ["jrc0200,jrc[0300-0301]", "jrc0200,jrc[0300-0301],jrc0101"]


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


def test_failed_query_ends_no_job(folder: Path, start, monkeypatch, capsys) -> None:
    monkeypatch.setattr(polling, "RETRY_INTERVAL_S", 0.1)
    fails_once = "[ -e down ] && rm down && echo Unable to contact slurmctld >&2 && exit 1\n"
    squeue = folder / "bin/squeue"
    squeue.write_text(squeue.read_text().replace("[ -e jobs ]", f"{fails_once}[ -e jobs ]"))
    (folder / "down").touch()
    assert run(start(), make_job()) == ["submitted", "finished"]
    line = "Slurm did not answer (squeue: Unable to contact slurmctld); asking again."
    assert line in capsys.readouterr().err


def test_ctrl_c_during_a_query_cancels_its_jobs(folder: Path, start, capsys) -> None:
    waits = "touch asked; until [ -e cancelled ]; do sleep 0.02; done\n"
    squeue = folder / "bin/squeue"
    squeue.write_text(squeue.read_text().replace("[ -e jobs ]", f"{waits}[ -e jobs ]"))
    (folder / "bin/scancel").write_text("#!/bin/sh\ntouch cancelled\n")
    (folder / "state").write_text("RUNNING")
    executor = start()
    executor.run_jobs([make_job()])
    deadline = time.monotonic() + 10
    while not (folder / "asked").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    executor.cancel()
    assert "Cancelled: 7 (evaluate)." in capsys.readouterr().err


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


def test_ctrl_c_waits_for_jobs_on_this_machine_and_says_nothing_of_them(start, caplog) -> None:
    """As a pull. Snakemake alone ends before them, with a traceback, and prints their commands."""
    executor, ended = start(), []
    local = SimpleNamespace(cancel=lambda: ended.append("job"))
    executor.workflow.scheduler._local_executor = local
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    executor.logger.error("Error in rule pull, jobid: 3")
    executor.logger.error("another error")
    executor.cancel()
    assert ended == ["job"]
    assert caplog.messages == ["another error"]


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
