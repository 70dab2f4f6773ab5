"""Floating-point throughput of each device: products of an m x k and a k x n matrix, 2 m n k
operations.

``float32`` is IEEE float32, ``tf32`` is float32 rounded to 10 bits of fraction by the GPU's tensor
cores, ``bfloat16`` and ``float8`` (e4m3) add in float32 and store bfloat16, as training does.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxway_job import measure, runtime
from jaxway_shared.benchmark import ErrorCheck, RoundMeasurement

OPTIONS = {
    "dtypes": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "enum": ["float32", "tf32", "bfloat16", "float8"]},
        "default": ["float32", "tf32", "bfloat16", "float8"],
        "description": "types of the numbers; those that the device lacks are skipped",
    },
    "shapes": {
        "type": ["array", "null"],
        "minItems": 1,
        "items": {"type": "string", "pattern": r"^\d+x\d+x\d+\Z"},
        "default": None,
        "description": "shapes of the products, m x n x k; null, a square and one as in a "
        "transformer's feed-forward layer, large enough for a GPU, small on a CPU",
    },
}
# Type of the operands and of the result, and precision, as jnp.matmul takes them.
DTYPES = {
    "float32": ("float32", "float32", "highest"),
    "tf32": ("float32", "float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", "bfloat16", "default"),
    "float8": ("float8_e4m3fn", "bfloat16", "default"),
}
SHAPES = {"cpu": ["1024x1024x1024", "1024x3072x768"], "gpu": ["8192x8192x8192", "16384x8192x2048"]}
# Compute capability of NVIDIA's GPUs from which on their tensor cores know a type.
MIN_CAPABILITY = {"tf32": 8.0, "float8": 8.9}


def product(
    shape: tuple[int, ...], dtype: str
) -> tuple[Callable[..., jax.Array], jax.Array, jax.Array]:
    """The jitted product, and two matrices of independent normal numbers on the default device."""
    m, n, k = shape
    operands, result, precision = DTYPES[dtype]

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=precision, preferred_element_type=result)

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key)
        a, b = jax.random.normal(keys[0], (m, k)), jax.random.normal(keys[1], (k, n))
        return a.astype(operands), b.astype(operands)

    # Where memory is short, waiting raises an exception; without it XLA aborts (JAX 0.10.2, CPU).
    return multiply, *jax.block_until_ready(draw(jax.random.key(0)))


def product_error(a: jax.Array, b: jax.Array, c: jax.Array, dtype: str) -> ErrorCheck:
    """Relative error (largest entry) of c = a b against float64, and the most rounding explains.

    Compares 64 x 64 entries spread over c. With unit roundoff u, adding k such products in float32
    errs by at most about sqrt(k) u (Higham and Mary 2019, doi:10.1137/18M1226312); storing the sum
    may round twice more, each time by u of c's dtype. TF32 rounds each operand by 2^-11, which is
    found out where float32 is asked for.
    """
    rows, columns = (np.unique(np.linspace(0, n - 1, 64, dtype=int)) for n in c.shape)
    exact = np.asarray(a)[rows].astype(float) @ np.asarray(b)[:, columns].astype(float)
    wrong = np.asarray(c)[np.ix_(rows, columns)].astype(float) - exact
    tolerance = float(jnp.finfo(c.dtype).eps) + math.sqrt(a.shape[1]) * 2.0**-24
    if dtype == "tf32":
        tolerance += 2.0**-10
    return ErrorCheck(float(np.max(np.abs(wrong)) / np.max(np.abs(exact))), tolerance)


def check_supported(dtype: str) -> None:
    """Raise an UnsupportedError if the devices have no arithmetic of this type."""
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", "")  # "8.0"; of AMD's GPUs "gfx90a"
    if (float(capability) if capability[:1].isdigit() else 0) < MIN_CAPABILITY.get(dtype, 0):
        raise measure.UnsupportedError(f"{device.device_kind} has no {dtype}")


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    mesh = runtime.start(args)

    def measure_product(dtype: str, words: str) -> RoundMeasurement:
        check_supported(dtype)
        m, n, k = shape = tuple(map(int, words.split("x")))

        def on_device(device: jax.Device) -> tuple[measure.Samples, ErrorCheck]:
            multiply, a, b = product(shape, dtype)
            # Where memory is short for c, reading it without waiting aborts XLA on the CPU.
            c = jax.block_until_ready(multiply(a, b))
            found = product_error(a, b, c, dtype)
            check = measure.check("the product", found.error, found.tolerance)
            return measure.collect_samples(lambda: multiply(a, b), args, [device]), check

        samples, check = measure.each_device(on_device)
        operand, result = (jnp.dtype(DTYPES[dtype][x]).itemsize for x in (0, 1))
        return measure.measurement(
            quantity="throughput per device",
            unit="TFLOP/s",
            formula="2 m n k / t",
            work=2 * m * n * k / 1e12,
            intensity=2 * m * n * k / (operand * (m * k + k * n) + result * m * n),
            flops_per_unit=1.0,
            samples=samples,
            check=check,
        )

    cases = (
        measure.run_case(partial(measure_product, dtype, shape), dtype=dtype, shape=shape)
        for dtype in args.dtypes
        for shape in args.shapes or SHAPES[mesh.devices.flat[0].platform]
    )
    measure.write(args, cases)


if __name__ == "__main__":
    main()
