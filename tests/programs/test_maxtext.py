import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import maxtext
import pytest

PROGRAM = Path(maxtext.__file__)
STEPS = 10
# A stub, not MaxText: it logs, saves at its end and on SIGTERM as MaxText of 2024-10-23 (commit
# ed2d123) did when it was run; resumption and evaluation follow its source and that of 0.2.5.
# After the step that $STUB_PAUSE names it writes the file `ready<rank>` and waits for SIGTERM;
# after the one that $STUB_FAIL names it exits with 3.
STUB = """
import os, signal, sys, time
from pathlib import Path
settings = dict(word.split("=", 1) for word in sys.argv[2:])
for key in settings.keys() - set(Path(sys.argv[1]).read_text().replace(":", "").split()):
    raise ValueError(f"Key {key} was passed at the command line but isn't in config.")
preempted = []
signal.signal(signal.SIGTERM, lambda *_: preempted.append(1))
state = Path(settings["base_output_directory"])
rank = os.environ.get("SLURM_PROCID", "0")
checkpoints = state / settings["run_name"] / "checkpoints"
checkpoints.mkdir(parents=True, exist_ok=True)
print("words", sys.argv[0], *sys.argv[2:], flush=True)
print("coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ["NNODES"],
      os.environ["JAX_LOCAL_DEVICE_IDS"], flush=True)
print("cache", os.environ.get("JAX_ENABLE_COMPILATION_CACHE"), flush=True)
first = max((int(p.name) + 1 for p in checkpoints.iterdir() if p.name.isdigit()), default=0)
for step in range(first, int(settings["steps"])):
    loss = os.environ.get("STUB_LOSS") or f"{9 - step / 10:.3f}"
    print(f"LINE", file=sys.OUTPUT, flush=True)
    if step == 4:
        print(f"EVALUATION", file=sys.OUTPUT, flush=True)
    if str(step) == os.environ.get("STUB_PAUSE"):
        (state / f"ready{rank}").touch()
        while not preempted:
            time.sleep(0.005)
    if str(step) == os.environ.get("STUB_FAIL"):
        sys.exit(3)
    period = os.environ.get("STUB_PERIOD", settings["checkpoint_period"])
    if rank == "0" and (step % int(period) == 0 or preempted):
        part = checkpoints / f"{step}.orbax-checkpoint-tmp"
        part.mkdir()
        part.rename(checkpoints / str(step))
    if preempted:
        sys.exit()
"""
OLD_LINE = (
    "completed step: {step}, seconds: 0.500, TFLOP/s/device: 12.250, "
    "Tokens/s/device: 256.500, total_weights: 256, loss: {loss}"
)
NEW_LINE = (
    "I1123 03:45:58.211639 139890003512192 metric_logger.py:265] " + OLD_LINE + ", lm_loss: 5, "
    "perplexity: 1629487.000"
)
OLD_EVALUATION = "average loss after step={step}: eval_step_count=2, eval_loss=6.5, total_weights=8"
NEW_EVALUATION = "Completed eval after train step {step}, loss=6.500, perplexity=665.142"
OLD_KEYS = (
    "run_name base_output_directory jax_cache_dir hardware model_name steps per_device_batch_size "
    "max_target_length dataset_type ici_data_parallelism ici_fsdp_parallelism learning_rate "
    "ici_tensor_parallelism enable_checkpointing async_checkpointing checkpoint_period "
    "enable_goodput_recording monitor_goodput"
)
NEW_KEYS = OLD_KEYS + " enable_autocheckpoint max_num_checkpoints_to_keep"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def old_image(folder):
    """Stub of MaxText in the image of October 2024, as a folder."""
    stub = (
        STUB.replace("LINE", OLD_LINE)
        .replace("EVALUATION", OLD_EVALUATION)
        .replace("OUTPUT", "stdout")
    )
    write(folder / "MaxText/train.py", stub)
    write(folder / "MaxText/configs/base.yml", OLD_KEYS.replace(" ", ":\n") + ":\n")
    return {"MAXTEXT_HOME": str(folder)}


def new_package(folder):
    """Stub of the package maxtext."""
    stub = (
        STUB.replace("LINE", NEW_LINE)
        .replace("EVALUATION", NEW_EVALUATION)
        .replace("OUTPUT", "stderr")
    )
    write(folder / "maxtext/trainers/pre_train/train.py", stub)
    for package in ("maxtext", "maxtext/trainers", "maxtext/trainers/pre_train"):
        write(folder / package / "__init__.py", "")
    write(folder / "maxtext/configs/base.yml", NEW_KEYS.replace(" ", ":\n") + ":\n")
    return {"MAXTEXT_HOME": "/nowhere", "PYTHONPATH": str(folder)}


@pytest.fixture(params=[old_image, new_package])
def stub(request, tmp_path):
    return request.param(tmp_path / "stub")


@pytest.fixture
def start(tmp_path):
    """Function that starts the program with a state and results in ``tmp_path``."""

    def start(*arguments, devices=1, **environment):
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "JAX"))}
        flags = [f"--devices={devices}", "--platform=cpu", f"--steps={STEPS}"]
        flags += ["--checkpoint-period=4", f"--state={tmp_path}/state", f"--out={tmp_path}/out/s"]
        return subprocess.Popen(
            [sys.executable, PROGRAM, *flags, *arguments],
            env={**outer, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait(process, code=0):
    """Wait for a program, and return what it printed."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stdout + stderr
    return stdout + stderr


def until(process, path):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_that_finishes(start, stub, tmp_path):
    log = wait(start("--settings=learning_rate=1e-4", devices=2, **stub))
    metrics = read_lines(tmp_path / "out/metrics.jsonl")
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, STEPS + 1))
    assert {"step": 5, "validation_loss": 6.5} in metrics
    assert metrics[3] == {
        "step": 4,
        "loss": 8.7,
        "step_seconds": 0.5,
        "tokens_per_second": 513.0,
        "tflops_per_device": 12.25,
    }
    assert "completed step: 9, " in log and "coordinator 1 0,1\n" in log
    assert "cache false\n" in log
    words = log.partition("words ")[2].partition("\n")[0].split()
    expected = {
        "hardware=gpu", f"base_output_directory={tmp_path}/state", "learning_rate=1e-4",
        "per_device_batch_size=2", "monitor_goodput=False", "ici_fsdp_parallelism=1",
        f"jax_cache_dir={tmp_path}/state/compilation_cache",
    }  # fmt: skip
    assert expected <= set(words)
    assert ("enable_autocheckpoint=True" in words) == ("PYTHONPATH" in stub)
    summary = json.loads((tmp_path / "out/s").read_text())
    assert (summary["program"], summary["steps"], summary["loss"]) == ("maxtext", STEPS, 8.1)
    assert summary["tokens_per_second"] == 513
    assert (tmp_path / "state/last_checkpoint_step").read_text() == f"{STEPS}\n"
    assert log.count("words ") == 2  # the second one saves the last step
    again = wait(start("--settings=learning_rate=1e-4", devices=2, **stub))
    assert "words" not in again


def test_maxtext_is_stopped_before_the_deadline_and_resumes(start, stub, tmp_path):
    soon = str(time.time() + maxtext.SHUTDOWN_MARGIN_S)
    log = wait(start(**stub, STUB_PAUSE="6", JAXWAY_DEADLINE=soon), 75)
    saved = int((tmp_path / "state/last_checkpoint_step").read_text())
    assert "MaxText was asked to stop and exited with code 0, can be resumed" in log
    assert not (tmp_path / "out").exists() and not (tmp_path / "state/error").exists()
    wait(start(**stub))
    lines = read_lines(tmp_path / "out/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, STEPS + 1)]
    segments = json.loads((tmp_path / "state/segments.json").read_text())["segments"]
    assert [(s["first_step"], s["last_step"]) for s in segments] == [(1, saved), (saved + 1, STEPS)]


def test_the_end_is_saved_with_the_default_period(start, stub, tmp_path):
    log = wait(start("--checkpoint-period=100", **stub))
    assert log.count("words ") == 1
    checkpoints = {path.name for path in (tmp_path / "state/run/checkpoints").iterdir()}
    assert checkpoints == {"0", str(STEPS - 1)}
    assert json.loads((tmp_path / "out/s").read_text())["steps"] == STEPS


def test_steps_are_those_that_are_saved(start, stub, tmp_path):
    wait(start(**stub, STUB_PERIOD="4"))  # as if it did not do what it is told
    assert json.loads((tmp_path / "out/s").read_text())["steps"] == 9


@pytest.mark.parametrize(
    ("steps", "period", "saved", "expected"),
    [(100, 100, 0, 99), (100, 10, 0, 10), (100, 10, 91, 99), (1, 100, 0, 1), (101, 100, 0, 100)],
)
def test_checkpoint_period(steps, period, saved, expected):
    args = argparse.Namespace(steps=steps, checkpoint_period=period)
    assert maxtext.checkpoint_period(args, saved) == expected


def test_sigterm_is_forwarded(start, stub, tmp_path):
    process = start(**stub, STUB_PAUSE="6")
    until(process, tmp_path / "state/ready0")
    process.terminate()
    wait(process, 75)
    assert (tmp_path / "state/last_checkpoint_step").read_text() == "7\n"


def test_steps_after_a_killed_run_are_logged_once(start, stub, tmp_path):
    process = start(**stub, STUB_PAUSE="6")
    until(process, tmp_path / "state/ready0")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    wait(process, 137)
    assert (tmp_path / "state/last_checkpoint_step").read_text() == "5\n"
    assert len(read_lines(tmp_path / "state/metrics.jsonl")) == 7 + 1  # an evaluation
    wait(start(**stub))
    assert len(read_lines(tmp_path / "out/metrics.jsonl")) == STEPS + 1


def test_failure_is_recorded(start, stub, tmp_path):
    assert "MaxText exited with code 3" in wait(start(**stub, STUB_FAIL="2"), 1)
    assert (tmp_path / "state/error").exists() and not (tmp_path / "out").exists()


def test_loss_that_is_not_finite_ends_the_run(start, stub, tmp_path):
    process = start(**stub, STUB_LOSS="nan", STUB_PAUSE="0")
    assert f"the loss is {math.nan} at step 1" in wait(process, 1)
    assert (tmp_path / "state/error").exists()


def test_two_processes(start, stub, tmp_path):
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "STUB_PAUSE": "0",  # real ones wait for each other
    }
    ranks = [
        start(devices=4, **stub, **step, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in (0, 1)
    ]
    for number, process in enumerate(ranks):
        until(process, tmp_path / f"state/ready{number}")
    logs = []
    for process in ranks:
        process.terminate()
        logs.append(wait(process, 75))
    for log, devices in zip(logs, ("0,1", "2,3"), strict=True):
        assert f"coordinator localhost:{61440 + 112} {devices}\n" in log
        assert "hardware=gpu_multiprocess" in log


def test_line_that_another_thread_wrote_into_is_skipped():
    line = NEW_LINE.format(step=4, loss="6.645W1126 03:45:59.000001")
    assert maxtext.parse_line(line, 1) is None
    metrics = maxtext.parse_line(NEW_LINE.format(step=4, loss="6.645"), 2)
    assert metrics is not None and (metrics["step"], metrics["loss"]) == (5, 6.645)


@pytest.mark.parametrize(
    ("line", "step"),
    [(OLD_EVALUATION, "9"), (OLD_EVALUATION, "np.int64(9)"), (NEW_EVALUATION, "9")],
)
def test_lines_of_evaluations(line, step):
    found = maxtext.parse_line(line.format(step=step), 1)
    assert found == {"step": 10, "validation_loss": 6.5}


def test_container_without_maxtext(start):
    assert "there is no MaxText here" in wait(start(MAXTEXT_HOME="/nowhere"), 1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("steps=5", "settings: steps=5 is set already"),
        ("learning_rate", "settings: learning_rate is no key=value"),
    ],
)
def test_invalid_settings(start, tmp_path, settings, sentence):
    assert sentence in wait(start(f"--settings={settings}", **old_image(tmp_path / "stub")), 1)
