"""What tests of training share: how to start the program, wait for it, and compare two runs."""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import train
from jaxway_shared import training
from jaxway_shared.training import TrainingState

PROGRAM = Path(train.__file__)
STEPS = 100
TIMEOUT_S = 400  # of a program that takes seconds on a machine that does nothing else
SLOWLY = {"SECONDS_TO_PRINT": "0.03"}  # a step: so a test is in time to interrupt a training
step_ids = itertools.count()


def arguments(record, state, out, **options):
    """Command line of a training that takes milliseconds a step."""
    tiny = {
        "data_record": record, "steps": STEPS, "layers": 2, "width": 32, "heads": 2, "ngram": 2,
        "context": 64, "global_batch": 16, "learning_rate": 0.01, "warmup_steps": 5, "log_every": 1,
        "checkpoint_minutes": 0.002, "validate_every": 25, "validate_tokens": 200, "keep_every": 40,
        "mixture": '{"some": 1, "most": 2}',
    }  # fmt: skip
    flags = {"platform": "cpu", "state": state, "out": out / "summary.json", **tiny, **options}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return [*words, "--no-unroll"]  # a loop compiles in less time


def wait(process, code=0):
    """Wait for a program, and return its standard error."""
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, stdout + stderr
    return stderr


def in_this_process(monkeypatch, *args):
    """Run the program here, which is faster; for runs that stop before they train."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    train.main()


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder):
    """Logged lines without their times, which no two runs share."""
    lines = read_lines(folder / "metrics.jsonl")
    names = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss", "sample_tokens")
    return [{name: line.get(name) for name in names} for line in lines]


def state_arrays(state):
    """All arrays of the newest checkpoint, by name."""
    newest = max((state / "checkpoints").iterdir(), key=lambda path: int(path.name))
    tree = ocp.StandardCheckpointer().restore(newest / "default")
    arrays = {}

    def walk(name, node):
        if isinstance(node, dict):
            node = list(node.items())
        elif isinstance(node, list | tuple):
            node = list(enumerate(node))
        elif node is not None:
            arrays[name] = np.asarray(node)
            return
        for key, value in node or []:
            walk(f"{name}/{key}", value)

    walk("", tree)
    return arrays


def same_as(undisturbed, folder, begin=0):
    """Assert that a run came to what an undisturbed one came to, to the last bit.

    ``begin``: the step of that one at which the run began.
    """
    lines = metrics(undisturbed / "out")
    assert metrics(folder / "out") == [line for line in lines if line["step"] > begin]
    expected, found = (state_arrays(x / "state") for x in (undisturbed, folder))
    assert len(expected) > 12 and found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    one, other = (json.loads((x / "out/summary.json").read_text()) for x in (undisturbed, folder))
    for name in ("validation_bits_per_byte", "train_bits_per_byte", "sample", "data"):
        assert one[name] == other[name], name
    best = training.best_step(training.read_metrics(folder / "out/metrics.jsonl"))
    kept = {step for step in (best, 40, 80, STEPS) if step > begin}
    assert kept <= {*training.checkpoint_steps(folder / "state")}
    return other["segments"]


def last_checkpoint_step(state):
    """The step from which the next job would resume."""
    return TrainingState.read(state).last_checkpoint_step or 0


def logged(state):
    """Steps whose metrics are written."""
    return len(training.metrics_text(state / "metrics.jsonl"))


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def ranks(launch, command, count, **environment):
    """Start all processes of a step on this machine."""
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": str(next(step_ids)),  # gives it a port of its own
    }
    return [
        launch(*command, **step, **environment, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(count)
    ]


def agree(one, other):
    """Assert that two runs learned alike.

    The same sums in another order: float32 rounds at 6e-8, and training amplifies that step by
    step, here to some 1e-5. Another batch would change a loss by some per cent.
    """
    a, b = metrics(one / "out"), metrics(other / "out")
    assert [m["step"] for m in a] == [m["step"] for m in b]
    for name in ("loss", "validation_loss"):
        one_values, other_values = ([m[name] for m in x if m[name] is not None] for x in (a, b))
        np.testing.assert_allclose(one_values, other_values, rtol=1e-3)
