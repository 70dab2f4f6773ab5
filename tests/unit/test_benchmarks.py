"""Each benchmark: the numbers follow its formula, and a wrong result ends it."""

import argparse
import json
import math
import os
import sys

import benchmark_all_reduce
import benchmark_matmul
import benchmark_memory
import benchmark_train_step
import harness
import jax
import jax.numpy as jnp
import model
import numpy as np
import pytest
import train
from jax.sharding import Mesh
from test_harness import launch

TINY = ("--layers", 1, "--width", 16, "--heads", 2, "--context", 16, "--global-batch", 4)
QUICK = ("--platform", "cpu", "--warmup", 1, "--repeats", 3)


@pytest.fixture
def benchmark(tmp_path):
    """Run a benchmark and return its result."""

    def run(program, *flags, processes=1):
        out = tmp_path / "result.json"
        done = launch(program, "--out", out, *QUICK, *flags, processes=processes)
        assert [process.returncode for process in done] == [0] * processes, done
        written = [process for process in done if "median of" in process.stdout]
        assert len(written) == 1
        result = json.loads(out.read_text())
        assert result["check"]["error"] <= result["check"]["tolerance"]
        assert result["min"] <= result["median"] <= result["max"]
        return result

    return run


def one_device():
    return Mesh(np.array(jax.devices()[:1]), (harness.AXIS,))


def work(result):
    """The work that gives each sample in its unit."""
    products = np.multiply(result["samples"], result["seconds"])
    assert np.ptp(products) <= 1e-6 * products.max()
    return pytest.approx(products.mean(), rel=1e-5)


def test_matmul(benchmark):
    flags = ("--devices", 2, "--size", 100, "--dtype", "bfloat16")
    result = benchmark("benchmark_matmul.py", *flags)
    assert work(result) == 2 * 100**3 / 1e12
    assert result["quantity"] == "bfloat16 throughput per device"
    assert len(result["samples"]) == 2 * 3
    assert len(result["median_per_device"]) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_error(dtype):
    multiply, a, b = benchmark_matmul.product(200, dtype)
    c = multiply(a, b)
    assert c.dtype == dtype
    error, tolerance = benchmark_matmul.error(a, b, c)
    assert 0 < error <= tolerance
    for wrong in (c.at[199, 199].add(3), c.T, multiply(a.at[:, 7].set(0), b), c * jnp.nan):
        assert not benchmark_matmul.error(a, b, wrong)[0] <= tolerance


def test_memory(benchmark):
    result = benchmark("benchmark_memory.py", "--megabytes", 1)
    assert work(result) == 3 * 2**20 / 1e9


def test_memory_is_checked(monkeypatch):
    args = argparse.Namespace(megabytes=1, warmup=1, repeats=1)
    monkeypatch.setattr(benchmark_memory, "triad", lambda a, b, c: (b + 3 * c).at[-1].add(1))
    with pytest.raises(SystemExit, match="the triad is wrong: its error is 1,"):
        benchmark_memory.on_device(args, jax.local_devices()[0])


def test_all_reduce(benchmark):
    """Four devices in two processes."""
    flags = ("--devices", 4, "--kilobytes", 16)
    result = benchmark("benchmark_all_reduce.py", *flags, processes=2)
    assert work(result) == 16 * 2**10 / 1e9 * 2 * 3 / 4
    assert result["quantity"] == "busbw"
    assert result["provenance"]["processes"] == 2
    assert len(result["samples"]) == 3


def test_all_reduce_in_one_process(benchmark):
    """More devices than cores: collectives that were queued would wait for each other for ever."""
    benchmark("benchmark_all_reduce.py", "--devices", 4 * (os.cpu_count() or 1), "--kilobytes", 16)


def test_all_reduce_on_one_device(benchmark):
    """The factor of busbw would be zero, so it is not busbw, and says so."""
    result = benchmark("benchmark_all_reduce.py", "--kilobytes", 16)
    assert work(result) == 16 * 2**10 / 1e9
    assert result["quantity"].startswith("algbw")
    assert result["formula"] == "S / t"


def test_all_reduce_error():
    mesh = one_device()
    x = benchmark_all_reduce.operand(mesh, 256)
    total = benchmark_all_reduce.all_reduce(mesh)(x)
    assert benchmark_all_reduce.error(total, 1) == 0
    assert benchmark_all_reduce.error(total.at[255].add(2), 1) == 2
    assert benchmark_all_reduce.error(x, 2) > 0  # not reduced


def test_train_step(benchmark):
    result = benchmark("benchmark_train_step.py", *TINY, "--devices", 2)
    assert work(result) == 4 * 16
    speed = result["median"] * result["flops_per_token"] / 2 / 1e12
    assert result["model_tflops_per_device"] == pytest.approx(speed)
    assert result["loss"]["last"] < result["loss"]["first"] == pytest.approx(math.log(256), abs=0.1)


NATS = math.log(256)  # of a byte, before anything is learned


@pytest.fixture
def train_step(tmp_path, monkeypatch):
    """Run benchmark_train_step in this process, as if on ``devices``; return what it says."""

    def run(*flags, devices):
        command = ["x", "--out", tmp_path / "out.json", "--devices", devices, *QUICK, *TINY, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(harness, "start", lambda args: one_device())
        with pytest.raises(SystemExit) as stop:
            benchmark_train_step.main()
        return str(stop.value.code)

    return run


@pytest.mark.parametrize(
    ("flags", "devices", "sentence"),
    [
        (("--global-batch", 3), 2, "global_batch 3 is not a multiple of 2 devices"),
        (("--heads", 3), 1, "width 16 is not an even multiple of 3 heads"),
    ],
)
def test_train_step_refuses(train_step, flags, devices, sentence):
    assert train_step(*flags, devices=devices).endswith(sentence)


@pytest.mark.parametrize(
    ("first", "change", "sentence"),
    [
        (float("nan"), 0, "the first loss is wrong: its error is nan"),
        (NATS + 1, -1, "the first loss is wrong: its error is 1"),
        (NATS, 0, "training does not lower the loss: it was 5.545 and became 5.545"),
        (NATS, float("nan"), "training does not lower the loss: it was 5.545 and became nan"),
    ],
)
def test_train_step_is_checked(train_step, monkeypatch, first, change, sentence):
    """A stand-in for training, whose loss is ``first`` and then changes in every step."""

    def step(config, optimizer, microbatches, state, tokens, wishes):
        params = {"loss": state["params"]["loss"] + change}
        return state | {"params": params}, state["params"]

    monkeypatch.setattr(model, "init", lambda config, key: {"loss": jnp.float32(first)})
    monkeypatch.setattr(train, "train_step", step)
    assert sentence in train_step(devices=1)


@pytest.mark.parametrize(
    ("program", "option", "value"),
    [
        ("benchmark_matmul.py", "size", 10**7),
        ("benchmark_all_reduce.py", "kilobytes", 10**12),
    ],
)
def test_too_large(tmp_path, program, option, value):
    (done,) = launch(program, "--out", tmp_path / "out.json", *QUICK, f"--{option}", value)
    sentence = f"{option} {value} needs more memory than a device has free: choose a smaller value"
    assert done.stderr == f"{program}: {sentence}\n"
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())
