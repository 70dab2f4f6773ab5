"""Each benchmark: the numbers follow its formula, and a wrong result has no speed."""

import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import benchmark_collective
import benchmark_compute
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_cases import OPERATIONS, QUICK, cases, measurements, work
from benchmark_collective import part
from jaxway_job import measure
from jaxway_shared.benchmark import BenchmarkRound, ErrorCheck
from test_runtime import launch

# Every program on the four devices of one process, and whether a collective's check finds what a
# collective that does something else leaves behind.
PROGRAMS = """
import importlib, json, sys
import benchmark_collective as collective
from jaxway_job import model
from benchmark_collective import largest_error, part
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import jax, numpy as np
from jaxway_shared import presets

def do(operation, size=64):
    return collective.collective(mesh, operation)(collective.operand(mesh, size))

def wrong(operation, size=64):
    '''Errors of results that are not those of the operation.'''
    correct = do(operation)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    pieces = [np.asarray(x.data) for x in correct.addressable_shards]
    others = [np.concatenate(pieces[k:] + pieces[:k]) for k in (1, 2, 3)]
    last = np.asarray(correct).copy()
    last[-1] += 1
    all_reduced = operation == "all_reduce", operation == "all_gather"
    changed = [last, 0 * last, np.nan * last] + others * (not any(all_reduced))
    each = np.resize(part(0, size), correct.shape)  # as if nothing was sent
    results = [jax.device_put(x.astype(np.float32), spread) for x in [*changed, each]]
    return [largest_error(operation, mesh, x, size) for x in results]

presets.PRESETS["tiny"] = presets.Preset(1, 16, 2, 16, 1, True, 1e-2)
for out, words in json.loads(sys.argv[1]):
    program, *flags = words.split()
    sys.argv = [program + ".py", "--out", out, *flags]
    importlib.import_module(program).main()
mesh = Mesh(np.array(jax.devices()), ("data",))
operations = json.loads(OPERATIONS)
print(json.dumps({x: [largest_error(x, mesh, do(x), 64), wrong(x)] for x in operations}))
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
    results = {name: BenchmarkRound.read(folder / name) for name in RUNS}
    return results, done.stdout.splitlines()


def test_compute(ran):
    found = cases(ran[0]["compute"])
    assert [*found] == [(x, "16x24x40") for x in ("float8", "tf32", "float32")]
    each = found["float32", "16x24x40"].measurement
    assert work(each) == 2 * 16 * 24 * 40 / 1e12
    assert each.unit == "TFLOP/s" and each.gpu is None
    assert each.intensity == 2 * 16 * 24 * 40 / 4 / (16 * 40 + 40 * 24 + 16 * 24)
    assert len(each.samples) == 4 * 3 and len(each.per_device) == 4
    for dtype in ("float8", "tf32"):
        assert found[dtype, "16x24x40"].skipped == f"cpu has no {dtype}"


@pytest.mark.parametrize(("m", "n", "k"), [(200, 100, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float8"])
def test_errors_of_products(dtype, m, n, k):
    multiply, a, b = benchmark_compute.product((m, n, k), dtype)
    c = multiply(a, b)
    assert c.dtype == ("bfloat16" if dtype == "float8" else dtype)
    found = benchmark_compute.product_error(a, b, c, dtype)
    assert 0 < found.error <= found.tolerance < 0.01
    other = multiply(a.at[:, 7].set(0), b)
    for wrong in (c.at[-1, -1].add(3), other, c * jnp.nan, c[::-1], 1.02 * c):
        found = benchmark_compute.product_error(a, b, wrong.astype(c.dtype), dtype)
        assert not found.error <= found.tolerance


def test_tf32_differs_from_float32():
    multiply, a, b = benchmark_compute.product((64, 64, 512), "float32")
    c = multiply(*(jax.lax.reduce_precision(x, 8, 10) for x in (a, b)))
    precise, tf32 = (benchmark_compute.product_error(a, b, c, x) for x in ("float32", "tf32"))
    assert precise.tolerance < precise.error == tf32.error < tf32.tolerance


@pytest.mark.parametrize(
    ("capability", "lacks"),
    [("7.0", ["tf32", "float8"]), ("8.0", ["float8"]), ("8.9", []), ("gfx90a", ["tf32", "float8"])],
)
def test_unsupported_types_are_skipped(monkeypatch, capability, lacks):
    gpu = SimpleNamespace(compute_capability=capability, device_kind="GPU")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    for dtype in lacks:
        with pytest.raises(measure.UnsupportedError, match=f"GPU has no {dtype}"):
            benchmark_compute.check_supported(dtype)
    for dtype in benchmark_compute.DTYPES.keys() - lacks:
        benchmark_compute.check_supported(dtype)


def test_memory(ran):
    found = measurements(ran[0]["memory"])
    arrays = {"copy": 2, "scale": 2, "add": 3, "triad": 3}
    for name, count in arrays.items():
        assert work(found[name,]) == count * 2**20 / 1e9
        assert found[name,].unit == "GB/s" and len(found[name,].per_device) == 4
        assert found[name,].check == ErrorCheck(0, 0)
    assert found["triad",].intensity == 2 / 12 and found["copy",].intensity is None
    for name in ("host to device", "device to host"):
        assert cases(ran[0]["memory"])[name,].skipped == "the CPU's memory is the host's"


def test_import_of_jax_is_all_of_it():
    """A clock that stands at 1 as soon as JAX has been imported."""
    code = (
        "import sys, time; time.time = lambda: float(hasattr(sys.modules.get('jax'), 'jit'))\n"
        "import benchmark_io; print(benchmark_io.STARTED, benchmark_io.IMPORTED)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "0.0 1.0\n"


def test_io(ran):
    found = measurements(ran[0]["io"])
    assert [*found] == [("start",), ("import",), ("write",), ("read",)]
    for name in ("start", "import"):
        (seconds,) = found[name,].samples
        assert 0 < seconds < 60 and found[name,].seconds == [seconds]
        assert (found[name,].unit, found[name,].higher_is_better) == ("s", False)
    for name in ("write", "read"):
        assert work(found[name,]) == 2**20 / 1e9
        assert len(found[name,].samples) == 2
        assert found[name,].check == ErrorCheck(0, 0)


def test_collective(ran):
    found = measurements(ran[0]["collective"])
    sizes = (1, 4, 16)
    assert [*found] == [(operation, size) for operation in OPERATIONS for size in sizes]
    for (operation, size), each in found.items():
        share = {"all_reduce": 2 * 3 / 4, "ppermute": 1}.get(operation, 3 / 4)
        assert work(each) == size * 2**10 / 1e9 * share
        assert (each.quantity, each.bytes) == ("busbw", size * 2**10)
        assert each.check == ErrorCheck(0, 0)
    assert ran[0]["collective"].transports == {}


def test_collective_errors(ran):
    for operation, (correct, wrong) in json.loads(ran[1][-1]).items():
        assert correct == 0, operation
        assert all(not error <= 0 for error in wrong), (operation, wrong)


def test_expected_parts_of_collectives():
    """By their definition, one number after the other."""
    n, size = 3, 9
    held = [part(k, size).tolist() for k in range(n)]
    share = size // n
    for device in range(n):
        sums = [sum(held[k][i] for k in range(n)) for i in range(size)]
        own = range(device * share, (device + 1) * share)
        expected = {
            "all_reduce": sums,
            "all_gather": [x for k in range(n) for x in held[k]],
            "reduce_scatter": [sums[i] for i in own],
            "all_to_all": [held[k][i] for k in range(n) for i in own],
            "ppermute": held[(device - 1) % n],
        }
        for operation, numbers in expected.items():
            found = benchmark_collective.expected_part(operation, n, jnp.int32(device), size)
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
    return BenchmarkRound.read(out), [process.stdout for process in done]


def test_collective_in_two_processes(two_processes):
    result, printed = two_processes
    found = measurements(result)
    assert result.provenance.processes == 2
    assert work(found["all_reduce", 16]) == 16 * 2**10 / 1e9 * 2 * 3 / 4
    assert all(len(each.samples) == 3 for each in found.values())
    assert [text.count("median of 3 samples") for text in printed] == [len(OPERATIONS), 0]


def test_more_devices_than_cores_do_not_hang(tmp_path):
    """Collectives that were queued would wait for each other for ever."""
    flags = (*QUICK, "--devices", 4 * (os.cpu_count() or 1), "--operations", "all_reduce")
    flags += ("--smallest", 16, "--largest", 16)
    (done,) = launch("benchmark_collective.py", "--out", tmp_path / "out.json", *flags)
    assert done.returncode == 0, done.stderr


def test_train_on_four_devices(ran):
    ((case, found),) = measurements(ran[0]["train"]).items()
    assert work(found) == found.tokens_per_call == 4 * 2 * 16
    assert case == ("tiny",) and found.unit == "tokens/s"
    assert found.loss.last < found.loss.first == pytest.approx(math.log(64), abs=0.1)
    # 6 N + 12 L D T, with N = 12 D D + D V.
    per_token = 6 * (12 * 16 * 16 + 16 * 64) + 12 * 16 * 16
    speed = np.median(found.samples) * per_token / 4 / 1e12
    assert found.model_tflops_per_device == pytest.approx(speed)
    assert found.mfu is None  # the peak of a CPU is not known
