"""Each benchmark: the numbers follow its formula, and a wrong result has no speed."""

import json
import math
import os
import sys
import time
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
from benchmark_collective import part
from jax.sharding import Mesh
from jaxway_job import measure, model, optimization, runtime
from jaxway_shared import presets
from test_runtime import launch

QUICK = ["--platform=cpu", "--warmup=1", "--repeats=3"]
OPERATIONS: Any = benchmark_collective.OPTIONS["operations"]["default"]

# Every program on the four devices of one process, and whether a collective's check finds what a
# collective that does something else leaves behind.
PROGRAMS = """
import importlib, json, sys
import benchmark_collective as collective
from jaxway_job import model
from benchmark_collective import error, part
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import jax, numpy as np
from jaxway_shared import presets

def do(operation, size=64):
    return collective.collective(mesh, operation)(collective.operand(mesh, size))

def wrong(operation, size=64):
    '''Errors of results that are not those of the operation.'''
    right = do(operation)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    pieces = [np.asarray(x.data) for x in right.addressable_shards]
    others = [np.concatenate(pieces[k:] + pieces[:k]) for k in (1, 2, 3)]
    last = np.asarray(right).copy()
    last[-1] += 1
    all_reduced = operation == "all_reduce", operation == "all_gather"
    changed = [last, 0 * last, np.nan * last] + others * (not any(all_reduced))
    each = np.resize(part(0, size), right.shape)  # as if nothing was sent
    results = [jax.device_put(x.astype(np.float32), spread) for x in [*changed, each]]
    return [error(operation, mesh, x, size) for x in results]

presets.PRESETS["tiny"] = presets.Preset(1, 16, 2, 16, 1, 1e-2)
for out, words in json.loads(sys.argv[1]):
    program, *flags = words.split()
    sys.argv = [program + ".py", "--out", out, *flags]
    importlib.import_module(program).main()
mesh = Mesh(np.array(jax.devices()), ("data",))
print(json.dumps({x: [error(x, mesh, do(x), 64), wrong(x)] for x in json.loads(OPERATIONS)}))
"""
RUNS = {
    "compute": "--dtypes float8 tf32 float32 --shapes 16x24x40",
    "memory": "--megabytes 1",
    "collective": "--smallest 1 --largest 20",
    "io": "--megabytes 1 --repeats 2 --scratch {scratch}",
    "train": "--batch-per-device 2 --fsdp 2 --vocabulary 64",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Results of all RUNS, and what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    scratch = folder / "scratch"
    scratch.mkdir()
    runs = [
        (
            str(folder / name),
            f"benchmark_{name} --devices=4 {' '.join(QUICK)} " + flags.format(scratch=scratch),
        )
        for name, flags in RUNS.items()
    ]
    code = f"OPERATIONS = {json.dumps(OPERATIONS)!r}\n{PROGRAMS}"
    (done,) = launch(code, json.dumps(runs), JAXWAY_LAUNCHED=str(time.time()))
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
    results = {name: json.loads((folder / name).read_text()) for name in RUNS}
    return results, done.stdout.splitlines()


def cases(result):
    """Measurements by their labels, after what holds of all of them."""
    assert result["provenance"]["devices"] == result["provenance"]["arguments"]["devices"]
    for found in result["measurements"]:
        assert not {"failed", "skipped"} & found.keys() or list(found)[1:] in (
            ["failed"],
            ["skipped"],
        )
        if "check" in found:
            assert found["check"]["error"] <= found["check"]["tolerance"]
    return {tuple(found["case"].values()): found for found in result["measurements"]}


def work(found):
    """The work that gives each sample in its unit."""
    products = np.multiply(found["samples"], found["seconds"])
    assert np.ptp(products) <= 1e-6 * products.max()
    return pytest.approx(products.mean(), rel=1e-5)


def test_compute(ran):
    found = cases(ran[0]["compute"])
    assert [*found] == [(x, "16x24x40") for x in ("float8", "tf32", "float32")]
    each = found["float32", "16x24x40"]
    assert work(each) == 2 * 16 * 24 * 40 / 1e12
    assert each["unit"] == "TFLOP/s" and each["gpu"] == {}
    assert each["intensity"] == 2 * 16 * 24 * 40 / 4 / (16 * 40 + 40 * 24 + 16 * 24)
    assert len(each["samples"]) == 4 * 3 and len(each["per_device"]) == 4
    for dtype in ("float8", "tf32"):
        assert found[dtype, "16x24x40"]["skipped"] == f"cpu has no {dtype}"


@pytest.mark.parametrize(("m", "n", "k"), [(200, 100, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float8"])
def test_errors_of_products(dtype, m, n, k):
    multiply, a, b = benchmark_compute.product((m, n, k), dtype)
    c = multiply(a, b)
    assert c.dtype == ("bfloat16" if dtype == "float8" else dtype)
    found = benchmark_compute.error(a, b, c, dtype)
    assert 0 < found["error"] <= found["tolerance"] < 0.01
    other = multiply(a.at[:, 7].set(0), b)
    for wrong in (c.at[-1, -1].add(3), other, c * jnp.nan, c[::-1], 1.02 * c):
        found = benchmark_compute.error(a, b, wrong.astype(c.dtype), dtype)
        assert not found["error"] <= found["tolerance"]


def test_tf32_is_told_from_float32():
    multiply, a, b = benchmark_compute.product((64, 64, 512), "float32")
    c = multiply(*(jax.lax.reduce_precision(x, 8, 10) for x in (a, b)))
    precise, tf32 = (benchmark_compute.error(a, b, c, x) for x in ("float32", "tf32"))
    assert precise["tolerance"] < precise["error"] == tf32["error"] < tf32["tolerance"]


@pytest.mark.parametrize(
    ("capability", "lacks"),
    [("7.0", ["tf32", "float8"]), ("8.0", ["float8"]), ("8.9", []), ("gfx90a", ["tf32", "float8"])],
)
def test_types_that_gpus_lack(monkeypatch, capability, lacks):
    gpu = SimpleNamespace(compute_capability=capability, device_kind="GPU")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    for dtype in lacks:
        with pytest.raises(measure.UnsupportedError, match=f"GPU has no {dtype}"):
            benchmark_compute.refuse_missing(dtype)
    for dtype in benchmark_compute.DTYPES.keys() - lacks:
        benchmark_compute.refuse_missing(dtype)


def test_memory(ran):
    found = cases(ran[0]["memory"])
    arrays = {"copy": 2, "scale": 2, "add": 3, "triad": 3}
    for name, count in arrays.items():
        assert work(found[name,]) == count * 2**20 / 1e9
        assert found[name,]["unit"] == "GB/s" and len(found[name,]["per_device"]) == 4
        assert found[name,]["check"] == {"error": 0, "tolerance": 0}
    assert found["triad",]["intensity"] == 2 / 12 and found["copy",]["intensity"] is None
    for name in ("host to device", "device to host"):
        assert found[name,]["skipped"] == "the CPU's memory is the host's"


def test_io(ran):
    found = cases(ran[0]["io"])
    assert [*found] == [("start",), ("import",), ("write",), ("read",)]
    for name in ("start", "import"):
        (seconds,) = found[name,]["samples"]
        assert 0 < seconds < 60 and found[name,]["seconds"] == [seconds]
        assert (found[name,]["unit"], found[name,]["higher_is_better"]) == ("s", False)
    for name in ("write", "read"):
        assert work(found[name,]) == 2**20 / 1e9
        assert len(found[name,]["samples"]) == 2
        assert found[name,]["check"] == {"error": 0, "tolerance": 0}


def test_collective(ran):
    found = cases(ran[0]["collective"])
    sizes = (1, 4, 16)
    assert [*found] == [(operation, size) for operation in OPERATIONS for size in sizes]
    for (operation, size), each in found.items():
        share = {"all_reduce": 2 * 3 / 4, "ppermute": 1}.get(operation, 3 / 4)
        assert work(each) == size * 2**10 / 1e9 * share
        assert (each["quantity"], each["bytes"]) == ("busbw", size * 2**10)
        assert each["check"] == {"error": 0, "tolerance": 0}
    assert ran[0]["collective"]["transports"] == {}


def test_collective_errors(ran):
    for operation, (right, wrong) in json.loads(ran[1][-1]).items():
        assert right == 0, operation
        assert all(not error <= 0 for error in wrong), (operation, wrong)


def test_what_collectives_give():
    """By their definition, one number after the other."""
    n, size = 3, 9
    held = [part(k, size).tolist() for k in range(n)]
    share = size // n
    for device in range(n):
        sums = [sum(held[k][i] for k in range(n)) for i in range(size)]
        mine = range(device * share, (device + 1) * share)
        due = {
            "all_reduce": sums,
            "all_gather": [x for k in range(n) for x in held[k]],
            "reduce_scatter": [sums[i] for i in mine],
            "all_to_all": [held[k][i] for k in range(n) for i in mine],
            "ppermute": held[(device - 1) % n],
        }
        for operation, numbers in due.items():
            found = benchmark_collective.expected(operation, n, jnp.int32(device), size)
            assert found.tolist() == numbers, operation


def test_parts_differ_from_device_to_device():
    """Also where float32 does not count by ones any more: a check of equal parts finds nothing."""
    a, b = (part(k, 2**24 + 64)[-64:] for k in (0, 1))
    assert (a != b).all() and (a[:-1] != a[1:]).all()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Small messages by four devices in two processes."""
    out = tmp_path_factory.mktemp("two") / "out.json"
    flags = (*QUICK, "--devices=4", "--smallest=16", "--largest=16")
    done = launch("benchmark_collective.py", "--out", out, *flags, processes=2)
    assert [process.returncode for process in done] == [0, 0], done
    return json.loads(out.read_text()), [process.stdout for process in done]


def test_collective_in_two_processes(two_processes):
    result, printed = two_processes
    found = cases(result)
    assert result["provenance"]["processes"] == 2
    assert work(found["all_reduce", 16]) == 16 * 2**10 / 1e9 * 2 * 3 / 4
    assert all(len(each["samples"]) == 3 for each in found.values())
    assert [text.count("median of 3 samples") for text in printed] == [len(OPERATIONS), 0]


def test_more_devices_than_cores(tmp_path):
    """Collectives that were queued would wait for each other for ever."""
    flags = (*QUICK, "--devices", 4 * (os.cpu_count() or 1), "--operations", "all_reduce")
    flags += ("--smallest", 16, "--largest", 16)
    (done,) = launch("benchmark_collective.py", "--out", tmp_path / "out.json", *flags)
    assert done.returncode == 0, done.stderr


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
        return cases(json.loads(out.read_text()))

    return go


def test_collective_on_one_device(run):
    """The factor of busbw would be zero, so it is not busbw, and says so."""
    for found in run(benchmark_collective, "--smallest", 16, "--largest", 16).values():
        assert work(found) == 16 * 2**10 / 1e9
        assert found["quantity"].startswith("algbw")


def test_sizes_of_messages():
    """From a few KiB, by fours, to the size for which sites have references."""
    small, large = (benchmark_collective.OPTIONS[x]["default"] for x in ("smallest", "largest"))
    assert (small, large, benchmark_collective.LARGEST["gpu"]) == (4, None, 4 * 4**9)


def test_a_wrong_collective(run, monkeypatch):
    right = benchmark_collective.body

    def body(operation, n, x):
        return right(operation, n, x) + (operation == "all_gather")

    monkeypatch.setattr(benchmark_collective, "body", body)
    found = run(benchmark_collective, "--largest", 4)
    assert found["all_gather", 4]["failed"].startswith("the all_gather is wrong: its error is 1,")
    assert [key[0] for key, each in found.items() if "failed" not in each] == [
        operation for operation in OPERATIONS if operation != "all_gather"
    ]


def test_a_wrong_kernel(run, monkeypatch):
    right = benchmark_memory.run

    def wrong(a, b, c, kernel):
        return right(a, b, c, kernel).at[-1].add(kernel == "triad")

    monkeypatch.setattr(benchmark_memory, "run", wrong)
    found = run(benchmark_memory, "--megabytes", 1)
    assert found["triad",]["failed"].startswith("the triad is wrong: its error is 1,")
    assert "failed" not in found["add",]


def test_a_wrong_product(run, monkeypatch):
    right = benchmark_compute.product

    def wrong(shape, dtype):
        multiply, a, b = right(shape, dtype)
        return lambda a, b: multiply(a, b).at[0, 0].add(9), a, b

    monkeypatch.setattr(benchmark_compute, "product", wrong)
    (found,) = run(benchmark_compute, "--dtypes", "float32", "--shapes", "64x64x64").values()
    assert found["failed"].startswith("the product is wrong: its error is ")


def test_a_product_that_is_too_large(run):
    shapes = ("10000000x10000000x10000000", "8x8x8")
    found = run(benchmark_compute, "--dtypes", "bfloat16", "--shapes", *shapes)
    said = "it needs more memory than a device has free: choose a smaller value"
    assert found["bfloat16", shapes[0]]["failed"] == said
    assert found["bfloat16", shapes[1]]["samples"]


class Damaged(benchmark_io.checkpoints.Checkpoints):
    """Gives back a checkpoint in which one number has changed."""

    def restore(self, like):
        step, content = super().restore(like)
        return step, [content[0].at[-1].add(1), *content[1:]]


def test_a_wrong_checkpoint(run, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_io.checkpoints, "Checkpoints", Damaged)
    found = run(benchmark_io, "--megabytes", 1, "--repeats", 1)
    for name in ("write", "read"):
        assert found[name,]["failed"].startswith("the checkpoint that was read is wrong: its error")
    assert found["start",]["skipped"] == "run_benchmarks.py did not start this program"
    assert not list((tmp_path / "scratch").iterdir())


class Lost(benchmark_io.checkpoints.Checkpoints):
    """A checkpoint that is no longer whole when it is read."""

    def read(self, step, like):
        return None, "it has changed"


def test_a_checkpoint_that_cannot_be_read(run, monkeypatch, tmp_path):
    """Nobody is told to delete the folder in which all trainings are."""
    monkeypatch.setattr(benchmark_io.checkpoints, "Checkpoints", Lost)
    found = run(benchmark_io, "--megabytes", 1, "--repeats", 1)
    assert "can be used" in found["read",]["failed"]
    assert f"delete {tmp_path / 'scratch'} " not in found["read",]["failed"]
    assert not list((tmp_path / "scratch").iterdir())


def test_train_on_four_devices(ran):
    ((_, found),) = cases(ran[0]["train"]).items()
    assert work(found) == found["tokens_per_call"] == 4 * 2 * 16
    assert found["case"] == {"preset": "tiny"} and found["unit"] == "tokens/s"
    assert found["loss"]["last"] < found["loss"]["first"] == pytest.approx(math.log(64), abs=0.1)
    # 6 N + 12 L D T, with N = 12 D D + D V.
    per_token = 6 * (12 * 16 * 16 + 16 * 64) + 12 * 16 * 16
    speed = np.median(found["samples"]) * per_token / 4 / 1e12
    assert found["model_tflops_per_device"] == pytest.approx(speed)
    assert found["mfu"] is None  # of a CPU nobody says the peak


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
        (float("nan"), 0, "the first loss is wrong: its error is nan"),
        (NATS + 1, -1, "the first loss is wrong: its error is 1"),
        (NATS, 0, "training does not lower the loss: it was 5.545 and became 5.545"),
        (NATS, float("nan"), "training does not lower the loss: it was 5.545 and became nan"),
    ],
)
def test_training_that_is_wrong(run, stub, first, change, sentence):
    stub(first, change)
    (found,) = run(benchmark_train).values()
    assert found["failed"].startswith(sentence)


@pytest.mark.parametrize(
    ("flags", "tokens"),
    [((), 8 * 128), (("--batch-per-device=3",), 384), (("--global-batch=5",), 640)],
)
def test_batches(run, stub, flags, tokens):
    stub()
    assert run(benchmark_train, *flags)["tiny",]["tokens_per_call"] == tokens


def test_mfu(run, stub, monkeypatch):
    stub()
    monkeypatch.setattr(benchmark_train.flops, "PEAKS", {"cpu": 1e12})
    found = run(benchmark_train)["tiny",]
    assert found["mfu"] == pytest.approx(found["model_tflops_per_device"])
    assert found["mfu_causal"] < found["mfu"]


def test_presets(run, stub):
    stub()
    assert [*run(benchmark_train, "--presets", "tiny", "124M")] == [("tiny",), ("124M",)]


def test_a_batch_that_devices_cannot_share(run, monkeypatch):
    monkeypatch.setattr(benchmark_train, "Mesh", lambda *_: SimpleNamespace(size=2))
    (found,) = run(benchmark_train, "--global-batch=3").values()
    assert found["failed"] == "global_batch 3 is not a multiple of 2 devices"


def test_devices_that_cannot_share_parameters(run):
    with pytest.raises(SystemExit, match="fsdp 3 does not divide 4 devices"):
        run(benchmark_train, "--devices=4", "--fsdp=3")


def test_presets_are_the_models():
    """OPTIONS must be literal, so their names stand there once more."""
    options: Any = benchmark_train.OPTIONS
    assert options["presets"]["items"]["enum"] == list(presets.PRESETS)
