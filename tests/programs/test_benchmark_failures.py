"""Benchmarks in one process: a wrong result has no speed, and sizes follow the options."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import benchmark_collective
import benchmark_compute
import benchmark_io
import benchmark_memory
import benchmark_train
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_cases import OPERATIONS, QUICK, cases, work
from jax.sharding import Mesh
from jaxway_job import model, optimization, runtime
from jaxway_shared import presets
from jaxway_shared.benchmark import BenchmarkRound


def one_device():
    return Mesh(np.array(jax.devices()[:1]), (runtime.AXIS,))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a benchmark in this process, on its one device; the cases that it finds."""
    monkeypatch.delenv("JAXWAY_LAUNCHED", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name in ("NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(runtime, "start", lambda args: one_device())

    def go(module, *flags):
        out = tmp_path / "out.json"
        words = ["program.py", "--out", out, *QUICK, "--scratch", tmp_path / "scratch", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        module.main()
        return cases(BenchmarkRound.read(out))

    return go


def test_collective_on_one_device(run):
    """The factor of busbw would be zero, so the quantity is another one."""
    for found in run(benchmark_collective, "--smallest", 16, "--largest", 16).values():
        assert work(found.measurement) == 16 * 2**10 / 1e9
        assert found.measurement.quantity.startswith("algbw")


def test_sizes_of_messages():
    """From a few KiB, by fours, to the size for which sites have references."""
    small, large = (benchmark_collective.OPTIONS[x]["default"] for x in ("smallest", "largest"))
    assert (small, large, benchmark_collective.LARGEST["gpu"]) == (4, None, 4 * 4**9)


def test_wrong_collective_fails(run, monkeypatch):
    correct = benchmark_collective.apply_operation

    def wrong(operation, n, x):
        return correct(operation, n, x) + (operation == "all_gather")

    monkeypatch.setattr(benchmark_collective, "apply_operation", wrong)
    found = run(benchmark_collective, "--largest", 4)
    assert found["all_gather", 4].failed.startswith("the all_gather is wrong: error 1 exceeds")
    assert [key[0] for key, each in found.items() if not each.failed] == [
        operation for operation in OPERATIONS if operation != "all_gather"
    ]


def test_wrong_kernel_fails(run, monkeypatch):
    correct = benchmark_memory.run

    def wrong(a, b, c, kernel):
        return correct(a, b, c, kernel).at[-1].add(kernel == "triad")

    monkeypatch.setattr(benchmark_memory, "run", wrong)
    found = run(benchmark_memory, "--megabytes", 1)
    assert found["triad",].failed.startswith("the triad is wrong: error 1 exceeds")
    assert not found["add",].failed


def test_wrong_product_fails(run, monkeypatch):
    correct = benchmark_compute.product

    def wrong(shape, dtype):
        multiply, a, b = correct(shape, dtype)
        return lambda a, b: multiply(a, b).at[0, 0].add(9), a, b

    monkeypatch.setattr(benchmark_compute, "product", wrong)
    (found,) = run(benchmark_compute, "--dtypes", "float32", "--shapes", "64x64x64").values()
    assert found.failed.startswith("the product is wrong: error ")


def test_product_larger_than_memory_fails(run):
    shapes = ("10000000x10000000x10000000", "8x8x8")
    found = run(benchmark_compute, "--dtypes", "bfloat16", "--shapes", *shapes)
    reason = "it needs more memory than a device has free: choose a smaller value [JW450]"
    assert found["bfloat16", shapes[0]].failed == reason
    assert found["bfloat16", shapes[1]].measurement.samples


class Damaged(benchmark_io.checkpoints.Checkpoints):
    """Gives back a checkpoint in which one number has changed."""

    def restore(self, like):
        step, content = super().restore(like)
        return step, [content[0].at[-1].add(1), *content[1:]]


def test_wrong_checkpoint_fails(run, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_io.checkpoints, "Checkpoints", Damaged)
    found = run(benchmark_io, "--megabytes", 1, "--repeats", 1)
    for name in ("write", "read"):
        assert found[name,].failed.startswith("the checkpoint that was read is wrong: error")
    assert found["start",].skipped == "run_benchmarks.py did not start this program"
    assert not list((tmp_path / "scratch").iterdir())


class Lost(benchmark_io.checkpoints.Checkpoints):
    """A checkpoint that is no longer whole when it is read."""

    def read(self, step, like):
        return None, "it has changed"


def test_unreadable_checkpoint_fails(run, monkeypatch, tmp_path):
    """Nobody is told to delete the folder in which all trainings are."""
    monkeypatch.setattr(benchmark_io.checkpoints, "Checkpoints", Lost)
    found = run(benchmark_io, "--megabytes", 1, "--repeats", 1)
    assert found["read",].failed.startswith("no checkpoint in ")
    assert f"delete {tmp_path / 'scratch'} " not in found["read",].failed
    assert not list((tmp_path / "scratch").iterdir())


NATS = math.log(256)  # of a byte, before anything is learned


@pytest.fixture
def stub(monkeypatch):
    """A stand-in for training, whose loss is ``first`` and then changes in every step."""

    def make(first=NATS, change=-0.01):
        def step(config, optimizer, accumulation_steps, state, tokens, actions):
            params = {"loss": state["params"]["loss"] + change}
            return state | {"params": params}, state["params"]

        monkeypatch.setattr(model, "init", lambda config, key: {"loss": jnp.float32(first)})
        monkeypatch.setattr(optimization, "train_step", step)

    return make


@pytest.mark.parametrize(
    ("first", "change", "sentence"),
    [
        (float("nan"), 0, "the first loss is wrong: error nan exceeds"),
        (NATS + 1, -1, "the first loss is wrong: error 1 exceeds"),
        (NATS, 0, "training does not lower the loss: it was 5.545 and became 5.545"),
        (NATS, float("nan"), "training does not lower the loss: it was 5.545 and became nan"),
    ],
)
def test_wrong_training_fails(run, stub, first, change, sentence):
    stub(first, change)
    (found,) = run(benchmark_train).values()
    assert found.failed.startswith(sentence)


@pytest.mark.parametrize(
    ("flags", "tokens"),
    [((), 8 * 128), (("--batch-per-device=3",), 384), (("--global-batch=5",), 640)],
)
def test_tokens_per_call(run, stub, flags, tokens):
    stub()
    assert run(benchmark_train, *flags)["tiny",].measurement.tokens_per_call == tokens


def test_mfu(run, stub, monkeypatch):
    stub()
    monkeypatch.setattr(benchmark_train.flops, "PEAKS", {"cpu": 1e12})
    found = run(benchmark_train)["tiny",].measurement
    assert found.mfu == pytest.approx(found.model_tflops_per_device)
    assert found.mfu_causal < found.mfu


def test_presets(run, stub):
    stub()
    assert [*run(benchmark_train, "--presets", "tiny", "124M")] == [("tiny",), ("124M",)]


def test_indivisible_batch_fails(run, monkeypatch):
    mesh = SimpleNamespace(size=2, devices=np.array(jax.devices()))
    monkeypatch.setattr(benchmark_train, "Mesh", lambda *_: mesh)
    (found,) = run(benchmark_train, "--global-batch=3").values()
    assert found.failed == "global_batch 3 is not a multiple of 2 devices [JW452]"


def test_indivisible_fsdp_ends_program(run):
    with pytest.raises(SystemExit, match="fsdp 3 does not divide 4 devices"):
        run(benchmark_train, "--devices=4", "--fsdp=3")


def test_presets_are_the_models():
    """OPTIONS must be literal, so their names stand there once more."""
    options: Any = benchmark_train.OPTIONS
    assert options["presets"]["items"]["enum"] == list(presets.PRESETS)
