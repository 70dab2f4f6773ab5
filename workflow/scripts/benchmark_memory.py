"""Memory bandwidth of each device: the triad a = b + s c of STREAM, with float32 arrays.

Three arrays move in each call, two read and one written; as in STREAM, the read of ``a`` that many
CPUs make before they write it is not counted. A process measures its devices one after the other.
"""

import argparse
import functools

import harness
import jax
import jax.numpy as jnp
import measure
import numpy as np

OPTIONS = {
    "megabytes": {
        "type": "integer",
        "minimum": 1,
        "maximum": 4096,
        "default": 64,
        "description": "size of each of the three arrays in MiB; should exceed every cache",
    },
}
S = 3.0


# Writing to fresh memory would measure the CPU's page faults, so each call reuses the last array.
@functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
def triad(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return b + S * c


@functools.partial(jax.jit, static_argnums=0)
def operands(n: int) -> tuple[jax.Array, ...]:
    """Room for ``a``; and ``b`` and ``c``, small integers: the triad is then an exact float32."""
    i = jnp.arange(n)
    return tuple((i % k).astype(jnp.float32) for k in (1, 1021, 1019))


def on_device(args: argparse.Namespace, device: jax.Device) -> tuple[dict[str, float], list[float]]:
    """Check of the triad, and seconds of each sample, on one device."""
    with jax.default_device(device):
        a, b, c = jax.block_until_ready(operands(args.megabytes * 2**18))
        a = triad(a, b, c)
        error = np.max(np.abs(np.asarray(a) - (np.asarray(b) + np.float32(S) * np.asarray(c))))
        check = measure.check("the triad", error, tolerance=0.0)

        def call() -> jax.Array:
            nonlocal a
            a = triad(a, b, c)
            return a

        return check, measure.seconds(call, args.warmup, args.repeats)


def main() -> None:
    args = harness.parser(__doc__, measure.OPTIONS | OPTIONS).parse_args()
    harness.start(args)
    with measure.memory_for(f"megabytes {args.megabytes}"):
        measured = [on_device(args, device) for device in jax.local_devices()]
    result = measure.result(
        args,
        benchmark="memory",
        quantity="triad bandwidth per device",
        unit="GB/s",
        formula="3 S / t, with S the bytes of one array",
        work=3 * args.megabytes * 2**20 / 1e9,
        checks=[check for check, _ in measured],
        seconds=[seconds for _, seconds in measured],
    )
    harness.write_json(args.out, result)


if __name__ == "__main__":
    main()
