"""Memory bandwidth of each device: copy, scale, add and triad of STREAM, with float32 arrays, and
transfers between the host's memory and the device's.

As in STREAM, the read of an array that many CPUs make before they write it is not counted.
"""

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxway_job import measure, runtime
from jaxway_shared.benchmark import ErrorCheck, RoundMeasurement

OPTIONS = {
    "megabytes": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 4096,
        "default": None,
        "description": "size of each array in MiB, which should exceed every cache; null, 64 on a "
        "CPU and 1024 on a GPU",
    },
}
S = 3.0
MEGABYTES = {"cpu": 64, "gpu": 1024}
# What each kernel makes of the arrays b and c, how many arrays it moves, and its operations for
# each of their numbers.
KERNELS: dict[str, tuple[Callable[..., jax.Array], int, int]] = {
    "copy": (lambda b, c: b, 2, 0),
    "scale": (lambda b, c: S * b, 2, 1),
    "add": (lambda b, c: b + c, 3, 1),
    "triad": (lambda b, c: b + S * c, 3, 2),
}


# Writing to fresh memory would measure the CPU's page faults, so each call reuses the last array.
@partial(jax.jit, donate_argnums=0, keep_unused=True, static_argnums=3)
def run(a: jax.Array, b: jax.Array, c: jax.Array, kernel: str) -> jax.Array:
    # Without the barrier XLA would return b itself as the copy.
    return jax.lax.optimization_barrier(KERNELS[kernel][0](b, c))


@partial(jax.jit, static_argnums=0)
def operands(n: int) -> tuple[jax.Array, ...]:
    """Memory for ``a``; and ``b`` and ``c``, small integers, so that every kernel is exact."""
    i = jnp.arange(n)
    return tuple((i % k).astype(jnp.float32) for k in (1, 1021, 1019))


def measure_kernel(args: argparse.Namespace, size: int, name: str) -> RoundMeasurement:
    """Bandwidth of a kernel on arrays of ``size`` bytes."""

    def on_device(device: jax.Device) -> tuple[measure.Samples, ErrorCheck]:
        a, b, c = jax.block_until_ready(operands(size // 4))
        a = run(a, b, c, name)
        exact = KERNELS[name][0](np.asarray(b), np.asarray(c))
        check = measure.check(f"the {name}", np.max(np.abs(np.asarray(a) - exact)), 0.0)

        def call() -> jax.Array:
            nonlocal a
            a = run(a, b, c, name)
            return a

        return measure.collect_samples(call, args, [device]), check

    samples, check = measure.each_device(on_device)
    _, arrays, operations = KERNELS[name]
    return measure.measurement(
        quantity="bandwidth per device",
        unit="GB/s",
        formula=f"{arrays} S / t, with S the bytes of one array",
        work=arrays * size / 1e9,
        intensity=operations / (4 * arrays) or None,
        flops_per_unit=operations / (4 * arrays) / 1e3 or None,
        samples=samples,
        check=check,
    )


def measure_transfer(args: argparse.Namespace, size: int, name: str) -> RoundMeasurement:
    """Bandwidth of a transfer of ``size`` bytes between host and device."""
    if jax.local_devices()[0].platform == "cpu":
        raise measure.UnsupportedError("the CPU's memory is the host's")
    host = np.arange(size // 4, dtype=np.float32) % 1021

    def on_device(device: jax.Device) -> tuple[measure.Samples, ErrorCheck]:
        there = jax.block_until_ready(jax.device_put(host, device))
        error = np.max(np.abs(np.asarray(there) - host))
        check = measure.check(f"the transfer {name}", error, 0.0)

        def call() -> object:
            if name == "host to device":
                return jax.device_put(host, device)
            # A fresh array: JAX keeps the host copy of an array.
            return np.asarray(there.copy())

        return measure.collect_samples(call, args, [device]), check

    samples, check = measure.each_device(on_device)
    return measure.measurement(
        quantity="bandwidth per device",
        unit="GB/s",
        formula="S / t, with S the bytes of the array",
        work=size / 1e9,
        samples=samples,
        check=check,
    )


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    mesh = runtime.start(args)
    size = (args.megabytes or MEGABYTES[mesh.devices.flat[0].platform]) * 2**20
    cases = dict.fromkeys(KERNELS, measure_kernel)
    cases |= dict.fromkeys(("host to device", "device to host"), measure_transfer)
    measure.write(
        args,
        (
            measure.run_case(partial(each, args, size, name), kernel=name)
            for name, each in cases.items()
        ),
    )


if __name__ == "__main__":
    main()
