"""All-reduce over all devices: bus bandwidth as nccl-tests define it.

With S bytes on each of n devices, algbw = S / t and busbw = algbw * 2 (n - 1) / n, which compares
with the speed of the slowest link whatever n is (nccl-tests, doc/PERFORMANCE.md). One device sends
nothing, so there the quantity is algbw, the speed of a copy at most.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

try:
    from jax import shard_map
except ImportError:  # JAX 0.4.33
    from jax.experimental.shard_map import shard_map  # type: ignore[no-redef]

import harness
import measure

OPTIONS = {
    "kilobytes": {
        "type": "integer",
        "minimum": 1,
        "default": 4096,
        "description": "size of the float32 array on each device in KiB",
    },
}


def all_reduce(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """The jitted sum over all devices of what each holds, left on every one of them."""
    f = partial(jax.lax.psum, axis_name=harness.AXIS)
    return jax.jit(shard_map(f, mesh=mesh, in_specs=P(harness.AXIS), out_specs=P()))


def pattern(size: int) -> np.ndarray:
    """0, 1, .., 6, 0, ..: device k holds k + this, so each sum is an exact float32."""
    return np.arange(size, dtype=np.float32) % 7


def operand(mesh: Mesh, size: int) -> jax.Array:
    """``size`` float32 numbers on each device."""

    def part(index: Any) -> np.ndarray:
        k = (index[0].start or 0) // size
        return np.float32(k) + pattern(size)

    sharding = NamedSharding(mesh, P(harness.AXIS))
    return jax.make_array_from_callback((mesh.size * size,), sharding, part)


def error(total: jax.Array, devices: int) -> float:
    """Largest error of the sum, on any device of this process."""
    exact = devices * (devices - 1) // 2 + devices * pattern(len(total))
    parts = total.addressable_shards
    return max(float(np.max(np.abs(np.asarray(part.data) - exact))) for part in parts)


def main() -> None:
    args = harness.parser(__doc__, measure.OPTIONS | OPTIONS).parse_args()
    mesh = harness.start(args)
    n = mesh.size
    with measure.memory_for(f"kilobytes {args.kilobytes}"):
        reduce = all_reduce(mesh)
        x = jax.block_until_ready(operand(mesh, args.kilobytes * 2**10 // 4))
        check = measure.check("the all-reduce", error(reduce(x), n), tolerance=0.0)
        seconds = measure.seconds(lambda: reduce(x), args.warmup, args.repeats)

    factor = 2 * (n - 1) / n if n > 1 else 1
    result = measure.result(
        args,
        benchmark="all_reduce",
        quantity="busbw" if n > 1 else "algbw (one device, nothing sent)",
        unit="GB/s",
        formula="S / t * 2 (n - 1) / n" if n > 1 else "S / t",
        work=args.kilobytes * 2**10 / 1e9 * factor,
        checks=[check],
        seconds=seconds,
    )
    harness.write_json(args.out, result)


if __name__ == "__main__":
    main()
