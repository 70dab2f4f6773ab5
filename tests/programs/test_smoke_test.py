"""The smoke test: it passes here, and each kind of failure is found, explained and recorded."""

import socket
import sys

import benchmark_collective
import benchmark_compute
import jax
import numpy as np
import pytest
import smoke_test
from jax.sharding import Mesh
from jaxway_job import gpu_state, runtime
from jaxway_shared.smoke_test import SmokeTestResult
from test_runtime import launch

NAMES = ["devices", *(check.__name__ for check in smoke_test.ON_DEVICES + smoke_test.ON_HOST)]
ON_GPUS = [check.__name__ for check in gpu_state.BEFORE_JAX]
HOST = socket.gethostname()


def verdicts(path):
    """Result file, and each check's verdict by name."""
    result = SmokeTestResult.read(path)
    return result, {check.name: check.passed for check in result.checks}


@pytest.fixture
def smoke(tmp_path, monkeypatch, capsys):
    """Run the smoke test in this process, on the devices that it has."""

    def run(*flags):
        out = tmp_path / "out.json"
        command = ["smoke_test.py", "--out", out, "--scratch", tmp_path, "--memory-mb", 1]
        command += ["--devices", jax.device_count(), *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        monkeypatch.setattr(smoke_test, "MODULES", ("json",))  # the real ones load for seconds
        with pytest.raises(SystemExit) as stop:
            smoke_test.main()
        return str(stop.value.code), *verdicts(out)

    monkeypatch.setenv("XLA_FLAGS", "")
    return run


def test_passes(tmp_path):
    out = tmp_path / "out.json"
    flags = ("--out", out, "--scratch", tmp_path, "--platform", "cpu", "--devices", 2)
    (done,) = launch("smoke_test.py", *flags)
    assert done.returncode == 0, done.stderr
    result, passed = verdicts(out)
    assert result.passed
    assert passed == dict.fromkeys(NAMES, True)
    assert result.provenance.devices == 2
    assert result.versions["jax"] == runtime.JAX_VERSION
    assert all(result.versions[name] for name in (*smoke_test.PACKAGES, "jax", "backend"))
    for name in (*NAMES, *smoke_test.PACKAGES):
        assert f"\n{name} " in "\n" + done.stdout
    assert list(tmp_path.iterdir()) == [out]  # scratch is left as it was


def test_every_check_has_a_meaning():
    assert {*smoke_test.MEANING} == {*NAMES, *ON_GPUS, "clocks"}


def test_wrong_number_of_devices(smoke):
    seen = jax.device_count()
    message, result, passed = smoke("--devices", seen + 1)
    assert (
        f"devices: JAX sees {seen} cpu devices, but the plan expects {seen + 1} on {HOST}"
        in message
    )
    assert smoke_test.MEANING["devices"] in message
    assert passed == {"devices": False, "scratch": True, "packages": True}
    assert result.provenance is None


def test_fallback_to_the_cpu(smoke, monkeypatch):
    """Even if JAX starts on the CPU without a word."""
    mesh = Mesh(np.array(jax.devices()), (runtime.AXIS,))
    monkeypatch.setattr(runtime, "start", lambda args: mesh)
    message, _, passed = smoke("--platform", "cuda")
    assert (
        f"devices: {mesh.size} cpu devices on {HOST}, but expected {mesh.size} cuda devices"
        in message
    )
    assert [name for name, ok in passed.items() if not ok] == ["devices"]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without GPU")
def test_no_gpu_and_no_scratch(tmp_path):
    """The first failure is explained; the others are in the file as well."""
    out = tmp_path / "out.json"
    (done,) = launch("smoke_test.py", "--out", out, "--scratch", __file__, "--platform", "cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("smoke_test.py: devices: ")
    assert len(done.stderr.splitlines()) == 1
    assert verdicts(out)[1] == {
        **dict.fromkeys(ON_GPUS, True),  # NVML is not here to tell
        "devices": False,
        "scratch": False,
        "packages": True,
    }


def test_scratch_is_a_file(smoke):
    message, result, passed = smoke("--scratch", __file__)
    assert message.startswith("smoke_test.py: scratch: FileExistsError")
    assert message.endswith(f"{smoke_test.MEANING['scratch']} [JW400]")
    assert [name for name, ok in passed.items() if not ok] == ["scratch"]
    assert not result.passed
    assert [check.name for check in result.checks if check.meaning] == ["scratch"]


def test_scratch_changes_what_it_keeps(smoke, monkeypatch):
    read = smoke_test.Path.read_bytes

    def read_changed(path):
        return read(path) + b"!" if path.name.startswith("smoke_test.") else read(path)

    monkeypatch.setattr(smoke_test.Path, "read_bytes", read_changed)
    assert f"scratch: 1 MiB changed on {HOST}, but expected 1 MiB kept" in smoke()[0]


def off_by(amount, make):
    """A maker of functions like ``make``, but what they return is wrong."""
    return lambda *inputs: lambda *x: make(*inputs)(*x) + amount


@pytest.mark.parametrize(
    ("module", "name", "amount", "check"),
    [
        (jax, "jit", 1, "jit"),
        (jax, "grad", 1, "gradient"),
        (jax, "grad", float("nan"), "gradient"),
        (benchmark_collective, "collective", 1, "collective"),
    ],
)
def test_wrong_numbers(smoke, monkeypatch, module, name, amount, check):
    monkeypatch.setattr(module, name, off_by(amount, getattr(module, name)))
    message, _, passed = smoke()
    assert message.startswith(f"smoke_test.py: {check}: error {amount} on {HOST}, but ")
    assert not passed[check]
    assert passed["memory"]  # what comes later has run


def test_float32_that_is_tf32(smoke, monkeypatch):
    def product(shape, dtype):
        multiply, a, b = correct(shape, dtype)
        return lambda a, b: multiply(tf32(a), tf32(b)), a, b

    correct = benchmark_compute.product
    monkeypatch.setattr(benchmark_compute, "product", product)
    message, _, passed = smoke()
    assert "matmul_float32: relative error 0.000" in message
    assert [name for name, ok in passed.items() if not ok] == ["matmul_float32"]


def tf32(x):
    """``x`` with the 10 bits of mantissa that TF32 has; a bfloat16 stays as it is."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


def test_too_much_memory(smoke):
    message, _, passed = smoke("--memory-mb", 10**8)
    assert "memory: " in message
    assert "RESOURCE_EXHAUSTED" in message
    assert [name for name, ok in passed.items() if not ok] == ["memory"]


def test_missing_package(smoke, monkeypatch):
    def importing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(smoke_test.importlib, "import_module", importing)
    message, _, _ = smoke()
    assert "packages: ModuleNotFoundError: No module named 'json'" in message


def test_failure_in_another_process(tmp_path):
    """Process 1 alone has no scratch: both processes fail, and the file of process 0 says why."""
    code = """
import os, sys, smoke_test
smoke_test.MODULES = ()
if os.environ["SLURM_PROCID"] == "1":
    sys.argv[sys.argv.index("--scratch") + 1] = "/dev/null/scratch"
smoke_test.main()
"""
    out = tmp_path / "out.json"
    flags = ("--out", out, "--scratch", tmp_path, "--platform", "cpu", "--devices", 2)
    done = launch(code, *flags, "--memory-mb", 1, processes=2)
    assert [process.returncode for process in done] == [1, 1]
    result, passed = verdicts(out)
    assert [name for name, ok in passed.items() if not ok] == ["scratch"]
    failed = result.checks[NAMES.index("scratch")]
    assert failed.measured == "failed in processes [1] on localhost"
    assert "/dev/null/scratch" in done[1].stderr
    assert "devices " not in done[1].stdout  # one table is enough
