"""Does JAX work here? Checks devices, compiler, communication, arithmetic, memory and scratch, and
the state of GPUs.

All checks run that can, the result file is written, and the exit code is 1 if any of them failed.
The first that failed is explained on standard error.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import benchmark_collective
import benchmark_compute
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxway_job import gpu_state, nvml, runtime
from jaxway_shared.errors import fail, from_exit
from jaxway_shared.smoke_test import Check, Outcome, SmokeTestResult

OPTIONS = {
    "memory_mb": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "memory to fill on each device, in MiB",
    },
}
MODULES = ("optax", "orbax.checkpoint")  # what training needs in addition to JAX
PACKAGES = ("jaxlib", "numpy", "optax", "orbax-checkpoint")


def devices(args: argparse.Namespace) -> tuple[Mesh | None, Outcome]:
    """Start JAX: the mesh, unless the devices are not those expected."""
    expected = f"{args.devices} {args.platform or 'default'} devices"
    try:
        mesh = runtime.start(args)
    except SystemExit as stop:
        return None, Outcome(str(from_exit(stop)), expected, False)
    kind = mesh.devices.flat[0].platform
    found = {"gpu": "cuda"}.get(kind, kind)
    passed = args.platform in (None, found)
    return mesh, Outcome(f"{mesh.size} {found} devices", expected, passed)


def jit(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    """A compiled function of small integers: exact in float32."""
    x = np.arange(1000, dtype=np.float32)
    return expect_zero(jax.jit(lambda x: x * x + 1)(x) - (x * x + 1))


def gradient(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    """The gradient of sum(x^3) is 3 x^2; small integers: exact in float32."""
    x = np.arange(100, dtype=np.float32)
    return expect_zero(jax.jit(jax.grad(lambda x: jnp.sum(x**3)))(x) - 3 * x * x)


def collective(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    """A psum over all devices of small integers: exact in float32."""
    size = 1024
    x = benchmark_collective.operand(mesh, size)
    total = benchmark_collective.collective(mesh, "all_reduce")(x)
    return expect_zero(benchmark_collective.largest_error("all_reduce", mesh, total, size))


def expect_zero(error: Any) -> Outcome:
    """Whether an array of errors is zero."""
    worst = float(np.max(np.abs(error)))
    return Outcome(f"error {worst:.3g}", "error 0", worst == 0)


def matmul_bfloat16(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    return matmul("bfloat16")


def matmul_float32(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    return matmul("float32")


def matmul(dtype: str) -> Outcome:
    """The same product on each local device; benchmark_compute.product_error has the tolerance."""
    multiply, a, b = benchmark_compute.product((512, 512, 512), dtype)
    errors = []
    for device in jax.local_devices():
        c = multiply(*jax.device_put((a, b), device))
        found = benchmark_compute.product_error(a, b, c, dtype)
        errors.append(found.error)
    worst, tolerance = float(np.max(errors)), found.tolerance
    return Outcome(f"relative error {worst:.2g}", f"at most {tolerance:.2g}", worst <= tolerance)


def memory(args: argparse.Namespace, mesh: Mesh) -> Outcome:
    """Fill ``memory_mb`` of every local device at the same time, then read it."""
    blocks = []
    for k, device in enumerate(jax.local_devices()):
        with jax.default_device(device):
            block = jnp.full((args.memory_mb, 2**18), k, jnp.float32)
            blocks.append(jax.block_until_ready(block))
    correct = sum(bool((block == k).all()) for k, block in enumerate(blocks))
    measured, expected = (f"{args.memory_mb} MiB on {n} devices" for n in (correct, len(blocks)))
    return Outcome(measured, expected, correct == len(blocks))


def scratch(args: argparse.Namespace, mesh: Mesh | None) -> Outcome:
    """Write a file of a unique name, flush it to the disk, read it back and delete it."""
    args.scratch.mkdir(parents=True, exist_ok=True)
    data = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=args.scratch, prefix="smoke_test.") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        unchanged = Path(file.name).read_bytes() == data
    return Outcome(f"1 MiB {'kept' if unchanged else 'changed'}", "1 MiB kept", unchanged)


def packages(args: argparse.Namespace, mesh: Mesh | None) -> Outcome:
    """Import what training needs in addition to JAX."""
    names = ", ".join(importlib.import_module(name).__name__ for name in MODULES)
    return Outcome(names, ", ".join(MODULES), True)


RETRY = "Run it again on another node; if it passes there, report this node to the site."
MEANING = {
    **gpu_state.MEANING,
    "devices": (
        "Nothing would run on the hardware that was asked for. Look at nvidia-smi inside the job, "
        "and at how the site's profile describes its nodes and starts the container (--nv)."
    ),
    "jit": f"Compiled code gives wrong numbers, or the driver cannot run the image's CUDA. {RETRY}",
    "gradient": f"Compiled gradients are wrong, so training would be. {RETRY}",
    "collective": (
        "The devices do not exchange data correctly. Run it again with NCCL_DEBUG=INFO, and check "
        "the interconnect settings of the site's profile."
    ),
    "matmul_bfloat16": f"A device multiplies wrongly in bfloat16. {RETRY}",
    "matmul_float32": (
        "A device multiplies wrongly in float32, or XLA_FLAGS or NVIDIA_TF32_OVERRIDE lower its "
        f"precision. {RETRY}"
    ),
    "memory": "Another process holds the memory, or memory_mb is too large: look at nvidia-smi.",
    "scratch": (
        "Results could not be saved. The folder given with --scratch must be writable, have "
        "quota left, and be visible inside the container (--bind)."
    ),
    "packages": "The image lacks what training needs: choose one that holds optax and orbax.",
}
ON_DEVICES = (jit, gradient, collective, matmul_bfloat16, matmul_float32, memory)
ON_HOST = (scratch, packages)


def run_checks(args: argparse.Namespace) -> dict[str, Outcome]:
    """Outcome of every check that can run in this process. An exception is an outcome too."""
    result: dict[str, Outcome] = {}

    def run(checks: Iterable[Callable[..., Outcome]], *inputs: Any) -> None:
        for check in checks:
            try:
                result[check.__name__] = check(*inputs)
            except Exception as error:
                message = f"{type(error).__name__}: {runtime.first_line(error)}"
                result[check.__name__] = Outcome(message, "no error", False)

    gpus, on_gpus = gpu_state.find(args), args.platform == "cuda"
    run(gpu_state.BEFORE_JAX if on_gpus else (), gpus)
    mesh, result["devices"] = devices(args)
    if mesh:
        with nvml.collect([gpu.index for gpu in gpus]) as telemetry:
            run(ON_DEVICES, args, mesh)
        run([gpu_state.clocks] if on_gpus else (), telemetry)
    run(ON_HOST, args, mesh)
    return result


def failing_processes(passed: list[bool]) -> list[list[int]]:
    """For each check the processes where it failed, as far as they can be asked."""
    try:
        gathered = multihost_utils.process_allgather(np.array(passed))
    except Exception:  # The checks `devices` and `collective` report it.
        gathered = np.array(passed)
    return [np.flatnonzero(~column).tolist() for column in gathered.reshape(-1, len(passed)).T]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages; None for what is missing."""
    result: dict[str, str | None] = {
        "python": platform.python_version(),
        "jax": runtime.JAX_VERSION,
    }
    for name in PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = None
    return result


def nodes_of(args: argparse.Namespace, processes: Iterable[int]) -> str:
    """Names of the nodes on which processes run."""
    try:
        topology = runtime.process_topology(args)
    except SystemExit:  # the check ``devices`` tells
        return socket.gethostname()
    return ", ".join(dict.fromkeys(map(topology.node_of, processes)))


def checks_of(args: argparse.Namespace, outcomes: dict[str, Outcome]) -> list[Check]:
    """Each check with what became of it in all processes."""
    checks = []
    failing = failing_processes([outcome.passed for outcome in outcomes.values()])
    for (name, (measured, expected, passed)), processes in zip(
        outcomes.items(), failing, strict=True
    ):
        if passed and processes:
            measured = f"failed in processes {processes}"
        if processes:
            measured += f" on {nodes_of(args, processes)}"
        meaning = MEANING[name] if processes else None
        checks.append(Check(name, not processes, measured, expected, meaning))
    return checks


def main() -> None:
    parser = runtime.parser(__doc__ or "", OPTIONS)
    parser.add_argument("--scratch", type=Path, required=True, help="folder to write a file in")
    args = parser.parse_args()

    outcomes = run_checks(args)
    checks = checks_of(args, outcomes)
    failed = [check for check in checks if not check.passed]
    provenance = runtime.provenance(args) if "jit" in outcomes else None
    software = versions() | {
        "backend": provenance.backend if provenance else None,
        "driver": provenance.driver if provenance else None,
    }

    if runtime.first_process():
        for check in checks:
            verdict = "ok" if check.passed else "FAILED"
            print(f"{check.name:18}{verdict:8}{check.measured} ({check.expected})")
        for name, version in software.items():
            print(f"{name:18}{version}")
    runtime.write_json(
        args.out, SmokeTestResult(provenance, not failed, checks, software).to_json()
    )
    if failed:
        first = failed[0]
        fail(
            "JW400",
            f"{first.name}: {first.measured}, but expected {first.expected}. {first.meaning}",
        )


if __name__ == "__main__":
    main()
