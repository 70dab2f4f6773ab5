"""What is shown of each job: by Slurm, its log, and the state of a training."""

import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from examples import make_site
from jaxway.monitor import logs
from jaxway.monitor.status import RESULTS, STEPS
from run_folder import LOCAL, METRICS, PROGRESS, log, shown, submit, train

RULES = Path(__file__).parents[3] / "rules"


def test_logs_and_results_are_those_of_the_rules() -> None:
    text = "".join(file.read_text() for file in RULES.glob("*.smk"))
    parts = re.split(r"^rule (\w+):", text, flags=re.MULTILINE)
    rules = dict(zip(parts[1::2], parts[2::2], strict=True))
    for step, result in RESULTS.items():
        (rule,) = (x for x in rules.values() if re.search(rf'"logs/{step}[/.]', x))
        output = rule.partition("output:")[2].partition("log:")[0]
        assert f'"{result}"' in re.sub(r"\{\w+\}", "{}", output)
    for rule, step in STEPS.items():
        assert f'"logs/{step}' in rules[rule]


def test_running_training_shows_its_progress(folder) -> None:
    submit()
    train(METRICS)
    assert shown() == {"train gpt": f"{PROGRESS}; job 17 runs on jrc0101 for 41:10, 23:18:50 left"}


def test_site_has_a_page_of_each_job_that_runs(folder) -> None:
    submit()
    site = make_site(job_page="https://h.org/jureca/{job}")
    (text,) = shown(site).values()
    assert text.endswith("; https://h.org/jureca/17")


def test_state_of_another_job_is_not_taken(folder) -> None:
    submit(id="18")
    train(METRICS)
    log("train/gpt.log", "compiling\n")
    assert shown()["train gpt"].endswith("; compiling")


def test_state_of_a_training_with_a_longer_name_is_not_taken(folder) -> None:
    submit(id="17")
    train(METRICS, name="gpt-b")
    log("train/gpt.log", "compiling\n")
    assert shown()["train gpt"].endswith("; compiling")


def test_running_job_shows_the_last_line_of_its_log(folder) -> None:
    submit(comment="rule_benchmark_run_wildcards_1x4")
    log("benchmark/1x4.log", "round 1\n\x1b[31mround\x07 2\x1b[0m\n\nINFO: of Apptainer\n", 180)
    assert shown()["benchmark 1x4"].endswith("; round 2 (no output for 3 min)")


def test_job_without_output_shows_its_state(folder) -> None:
    submit(comment="rule_smoke_test", state="COMPLETING")
    text = shown()["smoke_test"]
    assert "is completing on jrc0101" in text
    assert text.endswith("; no output yet")


def test_jobs_outside_slurm_are_shown_by_their_logs(folder, lock) -> None:
    os.utime(lock.name, (time.time() - 100,) * 2)
    log("pull.log", "layers: 2 of 9 downloaded\n")
    log("prepare_data/ab.log", "tokens: 3 of 9 MB\n", seconds_ago=95)
    log("prepare_data/cd.log", "9 tokens to train on\n")
    (folder / "results/data").mkdir(parents=True)
    (folder / "results/data/cd.json").touch()  # done
    log("prepare_data/ef.log", "failed in an earlier run\n", seconds_ago=110)
    log("verify_container.log", "done long ago\n", seconds_ago=90)
    log("train/gpt.log", "a job of Slurm's, which lists it no more\n")
    assert shown() == {
        "prepare_data ab": "tokens: 3 of 9 MB (no output for 2 min)",
        "pull": "layers: 2 of 9 downloaded",
    }


def test_without_slurm_a_training_shows_progress_while_its_process_lives(folder, lock) -> None:
    log("train/gpt.log", "starts\n")
    here = f"host {socket.gethostname()}, process {os.getpid()}, job none"
    train(METRICS, owner=here)
    assert shown(LOCAL) == {"train gpt": PROGRESS}
    ended = subprocess.Popen(["true"])
    ended.wait()
    train(METRICS, owner=here.replace(str(os.getpid()), str(ended.pid)))
    assert shown(LOCAL) == {"train gpt": "starts"}
    train(METRICS, owner=here.replace(socket.gethostname(), "elsewhere"))
    assert shown(LOCAL) == {"train gpt": "starts"}


def test_broken_lines_of_metrics_are_skipped(folder) -> None:
    broken = ["{'no': json}\n", "[]\n", '{"loss": 3}\n', '{"step": "9"}\n', '{"step": 1300, "lo']
    assert logs.training_progress(train(METRICS, *broken), 10000) == PROGRESS
    assert logs.training_progress(train(*broken), 10000) == ""


@pytest.mark.parametrize(
    ("line", "steps", "text"),
    [
        ({"step": 7}, None, "step 7"),
        ({"step": 7, "loss": "low", "step_seconds": 1}, None, "step 7"),
        ({"step": 7, "loss": 0.01234}, 70, "step 7 of 70, loss 0.0123"),
        ({"step": 70, "loss": 12.345, "step_seconds": 1}, 70, "step 70 of 70, loss 12.3"),
    ],
)
def test_progress_has_what_a_program_writes(folder, line, steps, text) -> None:
    assert logs.training_progress(train(line, name="own"), steps) == text


def test_time_left_is_a_median_of_the_latest_lines(folder) -> None:
    slow = [{"step": step, "step_seconds": 100} for step in range(1, 20)]
    now = [{"step": step, "step_seconds": 2} for step in range(20, 30)]
    state = train(*slow, *now[:-1], {"step": 29, "step_seconds": 60})  # which wrote a checkpoint
    assert logs.training_progress(state, 59) == "step 29 of 59, 60 s left"


def test_only_the_end_of_a_long_file_is_read(folder) -> None:
    state = train(*[METRICS | {"step": step, "more": "x" * 100} for step in range(1000)])
    assert logs.training_progress(state, None) == "step 999, loss 1.93, 152k tokens/s"
    read = logs.tail(state / "metrics.jsonl")
    assert len(read) < 500 and json.loads(read[0])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(89, "89 s"), (91, "2 min"), (5300, "88 min"), (5400, "1.5 h"), (180000, "2.1 days")],
)
def test_duration(seconds, text) -> None:
    assert logs.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.14159, "3.14"), (999.4, "999"), (999.6, "1k"), (152345, "152k"), (2.5e6, "2.5M")],
)
def test_short_number(number, text) -> None:
    assert logs.short_number(number) == text
