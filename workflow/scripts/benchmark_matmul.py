"""Floating-point throughput of each device: the product of two n x n matrices, 2 n^3 operations.

A process measures its devices one after the other, so that a slow one shows. ``float32`` is IEEE
float32, never TF32; ``bfloat16`` adds in float32 and stores bfloat16, as training does.
"""

import argparse
import functools
import math
from collections.abc import Callable

import harness
import jax
import jax.numpy as jnp
import measure
import numpy as np

OPTIONS = {
    "size": {
        "type": "integer",
        "minimum": 1,
        "default": 1024,
        "description": "rows and columns n of each matrix",
    },
    "dtype": {
        "type": "string",
        "enum": ["float32", "bfloat16"],
        "default": "float32",
        "description": "type of the numbers; float32 is without TF32",
    },
}


def product(size: int, dtype: str) -> tuple[Callable[..., jax.Array], jax.Array, jax.Array]:
    """The jitted product, and two matrices of independent normal numbers on the default device."""
    precision = "highest" if dtype == "float32" else "default"
    # If memory lacks, waiting raises an exception; going on without aborts XLA (JAX 0.10.2 on CPU).
    a, b = jax.block_until_ready(jax.random.normal(jax.random.key(0), (2, size, size), dtype))
    return jax.jit(functools.partial(jnp.matmul, precision=precision)), a, b


def error(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[float, float]:
    """Relative error (largest entry) of c = a b against float64, and the most rounding explains.

    Compares 64 x 64 entries spread over c. With unit roundoff u, adding n such products in float32
    errs by at most about sqrt(n) u (Higham and Mary 2019, doi:10.1137/18M1226312); storing the sum
    may round twice more, each time by u of c's dtype. TF32 errs by some 2^-12, and is found out.
    """
    n = len(c)
    some = np.unique(np.linspace(0, n - 1, 64, dtype=int))
    exact = np.asarray(a)[some].astype(float) @ np.asarray(b)[:, some].astype(float)
    wrong = np.asarray(c)[np.ix_(some, some)].astype(float) - exact
    tolerance = float(jnp.finfo(c.dtype).eps) + math.sqrt(n) * 2.0**-24
    return float(np.max(np.abs(wrong)) / np.max(np.abs(exact))), tolerance


def on_device(args: argparse.Namespace, device: jax.Device) -> tuple[dict[str, float], list[float]]:
    """Check of the product, and seconds of each sample, on one device."""
    with jax.default_device(device):
        multiply, a, b = product(args.size, args.dtype)
        check = measure.check("the product", *error(a, b, multiply(a, b)))
        return check, measure.seconds(lambda: multiply(a, b), args.warmup, args.repeats)


def main() -> None:
    args = harness.parser(__doc__, measure.OPTIONS | OPTIONS).parse_args()
    harness.start(args)
    with measure.memory_for(f"size {args.size}"):
        measured = [on_device(args, device) for device in jax.local_devices()]
    result = measure.result(
        args,
        benchmark="matmul",
        quantity=f"{args.dtype} throughput per device",
        unit="TFLOP/s",
        formula="2 n^3 / t",
        work=2 * args.size**3 / 1e12,
        checks=[check for check, _ in measured],
        seconds=[seconds for _, seconds in measured],
    )
    harness.write_json(args.out, result)


if __name__ == "__main__":
    main()
