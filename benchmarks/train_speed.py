"""What share of the speed of plain matrix products a training step reaches on this CPU.

The products have the shapes of the model's own, forward and backward, and take turns with the step.
Run with any Python that has JAX and optax: .venv/bin/python benchmarks/train_speed.py [WIDTH]
"""

import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
import jax
import numpy as np
import optax
from jaxway_job import flops, model, optimization, runtime

LAYERS, CONTEXT, BATCH, ROUNDS = 4, 256, 8, 7


def seconds(call):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def product(m, k, n):
    """A call that multiplies m x k by k x n, and its FLOPs."""
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    multiply = jax.jit(lambda a, b: a @ b)
    return partial(multiply, *map(jax.device_put, (a, b))), 2 * m * k * n


def main():
    runtime.keep_memory()
    width = int(sys.argv[1]) if sys.argv[1:] else 512
    config = model.Config(LAYERS, width, width // 64, unroll=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))
    step = jax.jit(partial(optimization.train_step, config, optimizer, 1), donate_argnums=0)
    params = model.init(config, jax.random.key(0))
    state = {"params": params, "optimizer": optimizer.init(params)}
    text = np.random.default_rng(0).integers(0, 256, (BATCH, CONTEXT + 1)).astype(np.uint8)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    step = optimization.compile_step(step.lower(state, text, np.zeros(1, np.int32)), mesh, None)

    def one_step():
        nonlocal state
        state, result = step(state, text, np.zeros(1, np.int32))
        return result

    work = BATCH * CONTEXT * flops.per_token(config, CONTEXT)
    tokens, ratios, speeds = BATCH * CONTEXT, [], []
    shapes = [(tokens, width, n * width) for n in (1, 3, 4)] + [(tokens, 4 * width, width)]
    shapes += [(width, tokens, n * width) for n in (1, 3, 4)]
    products = [product(*shape) for shape in shapes]
    for call in (one_step, *(call for call, _ in products)):
        seconds(call)  # compiles
    for _ in range(ROUNDS):
        best = max(flop / min(seconds(call) for _ in range(3)) for call, flop in products)
        speeds.append((work / seconds(one_step) / 1e9, best / 1e9))
        ratios.append(speeds[-1][0] / speeds[-1][1])
    ours, best = (median(column) for column in zip(*speeds, strict=True))
    print(
        f"JAX {jax.__version__}, {LAYERS} layers of width {width}, {BATCH} x {CONTEXT} tokens, "
        f"float32: step {ours:.0f} GFLOP/s, best product {best:.0f} GFLOP/s, ratio "
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} rounds)"
    )


if __name__ == "__main__":
    main()
