"""Collectives over all devices, from small messages to large: bandwidth as nccl-tests define it.

With S bytes and t seconds, algbw = S / t; busbw is algbw times the share of S that has to cross the
slowest link, and compares with that link's speed whatever n is (nccl-tests, doc/PERFORMANCE.md).
S is the larger of what a device holds before and after; a ppermute sends all of it to the next
device.
"""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

try:
    from jax import shard_map
except ImportError:  # JAX 0.4.33
    from jax.experimental.shard_map import shard_map  # type: ignore[no-redef]

from jaxway_job import measure, nccl_log, runtime
from jaxway_shared.benchmark import RoundMeasurement

OPTIONS = {
    "operations": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "string",
            "enum": ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ppermute"],
        },
        "default": ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ppermute"],
        "description": "collectives to measure",
    },
    "smallest": {
        "type": "integer",
        "minimum": 1,
        "default": 4,
        "description": "smallest message, in KiB; the next one is four times as large",
    },
    "largest": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "largest message, in KiB; null, 1 GiB on GPUs and 4 MiB on CPUs",
    },
}
LARGEST = {"cpu": 2**12, "gpu": 2**20}


def apply_operation(operation: str, n: int, x: jax.Array) -> jax.Array:
    """What every device does with its part ``x``."""
    axis = runtime.AXIS
    if operation == "all_reduce":
        return jax.lax.psum(x, axis)
    if operation == "all_gather":
        return jax.lax.all_gather(x, axis, tiled=True)
    if operation == "reduce_scatter":
        return jax.lax.psum_scatter(x, axis, tiled=True)
    if operation == "all_to_all":
        return jax.lax.all_to_all(x, axis, 0, 0, tiled=True)
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


def part(device: int | jax.Array, size: int) -> jax.Array:
    """``size`` small integers that differ from device to device: every sum is exact in float32."""
    return ((jnp.arange(size, dtype=jnp.int32) + 3 * device) % 7).astype(jnp.float32)


def expected_part(operation: str, n: int, device: jax.Array, size: int) -> jax.Array:
    """What a device must hold afterwards, if each held ``part(device, size)`` before."""

    def own_part(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x, (device * (size // n),), (size // n,))

    if operation == "all_gather":
        return jnp.concatenate([part(k, size) for k in range(n)])
    if operation == "all_to_all":
        return jnp.concatenate([own_part(part(k, size)) for k in range(n)])
    if operation == "ppermute":
        return part((device - 1) % n, size)
    total = functools.reduce(jnp.add, [part(k, size) for k in range(n)])
    return own_part(total) if operation == "reduce_scatter" else total


def map_devices(mesh: Mesh, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The jitted ``function`` of a device's parts of arrays, which gives its part of another."""
    spec = P(runtime.AXIS)
    return jax.jit(shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec))


def collective(mesh: Mesh, operation: str) -> Callable[[jax.Array], jax.Array]:
    """The jitted operation; each device's result is its part of the array that it returns."""
    return map_devices(mesh, partial(apply_operation, operation, mesh.size))


def device_numbers(mesh: Mesh) -> jax.Array:
    """Each device's number, on that device."""
    sharding = NamedSharding(mesh, P(runtime.AXIS))
    numbers = np.arange(mesh.size, dtype=np.int32)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def operand(mesh: Mesh, size: int) -> jax.Array:
    """``size`` float32 numbers on each device."""
    return map_devices(mesh, lambda device: part(device[0], size))(device_numbers(mesh))


def largest_error(operation: str, mesh: Mesh, result: jax.Array, size: int) -> float:
    """Largest error on any device of this process. Each compares with what it computes alone: all
    of a large message on the host would take minutes."""

    def largest(device: jax.Array, held: jax.Array) -> jax.Array:
        wrong = jnp.abs(held - expected_part(operation, mesh.size, device[0], size))
        return jnp.max(wrong, keepdims=True)

    errors = map_devices(mesh, largest)(device_numbers(mesh), result)
    return max(float(each.data[0]) for each in errors.addressable_shards)


def factor(operation: str, n: int) -> float:
    """Share of S that crosses the slowest link."""
    if n == 1 or operation == "ppermute":
        return 1.0
    return (2 if operation == "all_reduce" else 1) * (n - 1) / n


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    nccl_log.start(args.out)
    mesh = runtime.start(args)
    n = mesh.size
    largest = args.largest or LARGEST[mesh.devices.flat[0].platform]
    sizes = [args.smallest * 4**i for i in range(20) if args.smallest * 4**i <= largest]

    def measure_collective(operation: str, kilobytes: int) -> RoundMeasurement:
        grows = n if operation == "all_gather" else 1
        # A multiple of n x n numbers, so that every part of a part is whole.
        size = max(1, kilobytes * 256 // grows // (n * n)) * n * n
        do, x = collective(mesh, operation), jax.block_until_ready(operand(mesh, size))
        error = largest_error(operation, mesh, do(x), size)
        return measure.measurement(
            quantity="busbw" if n > 1 else "algbw (one device, nothing sent)",
            unit="GB/s",
            formula=f"S / t * {factor(operation, n):.4g}",
            work=4 * size * grows / 1e9 * factor(operation, n),
            check=measure.check(f"the {operation}", error, tolerance=0.0),
            bytes=4 * size * grows,
            samples=measure.collect_samples(lambda: do(x), args),
        )

    cases = (
        measure.run_case(
            partial(measure_collective, operation, size), operation=operation, kilobytes=size
        )
        for operation in args.operations
        for size in sizes
    )
    measure.write(args, cases)


if __name__ == "__main__":
    main()
