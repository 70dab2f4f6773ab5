"""Speed of the training step of train.py, forward, backward and update, on one batch at all times.

The batch counts upwards from random bytes, which a model learns at once, so a step that does not
lower the loss is wrong. Model FLOP count the matrix products only (flops.per_token).
"""

import math
from functools import partial

import flops
import harness
import jax
import measure
import model
import numpy as np
import optax
import train
from jax.sharding import Mesh, NamedSharding, PartitionSpec

OPTIONS = {
    "layers": {"type": "integer", "minimum": 1, "default": 2, "description": "transformer layers"},
    "width": {
        "type": "integer",
        "minimum": 2,
        "default": 128,
        "description": "model width, an even multiple of heads",
    },
    "heads": {"type": "integer", "minimum": 1, "default": 2, "description": "attention heads"},
    "context": {
        "type": "integer",
        "minimum": 8,
        "default": 64,
        "description": "length of a sequence, in bytes",
    },
    "global_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "sequences per step, on all devices together",
    },
    "dtype": {
        "type": "string",
        "enum": ["float32", "bfloat16"],
        "default": "float32",
        "description": "type of activations; parameters are float32",
    },
}


def main() -> None:
    args = harness.parser(__doc__, measure.OPTIONS | OPTIONS).parse_args()
    if args.global_batch % args.devices:
        harness.fail(
            f"global_batch {args.global_batch} is not a multiple of {args.devices} devices"
        )
    mesh = Mesh(harness.start(args).devices.reshape(-1, 1, 1), model.AXES)
    try:
        config = model.Config(args.layers, args.width, args.heads, dtype=args.dtype, mesh=mesh)
    except ValueError as error:
        harness.fail(str(error))
    # Slow enough for every width; the rate does not change the work.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))
    step = jax.jit(partial(train.train_step, config, optimizer, 1), donate_argnums=0)

    def initial() -> train.Tree:
        params = model.init(config, jax.random.key(0))
        return {"params": params, "optimizer": optimizer.init(params)}

    first = np.random.default_rng(0).integers(0, 256, (args.global_batch, 1))
    batch = ((first + np.arange(args.context + 1)) % 256).astype(np.uint8)
    whole = NamedSharding(mesh, PartitionSpec())
    wishes = np.zeros(mesh.size, np.int32)
    with measure.memory_for(f"this model with global_batch {args.global_batch}"):
        state = jax.block_until_ready(jax.jit(initial, out_shardings=whole)())
        tokens = jax.make_array_from_callback(
            batch.shape, NamedSharding(mesh, model.BATCH), lambda index: batch[index]
        )
        state, metrics = step(state, tokens, wishes)
        # Before training all 256 bytes are about equally likely; the logits have a spread of 0.1.
        loss = float(metrics["loss"])
        check = measure.check("the first loss", abs(loss - math.log(256)), tolerance=0.1)

        def call() -> train.Tree:
            nonlocal state, metrics
            state, metrics = step(state, tokens, wishes)
            return metrics

        seconds = measure.seconds(call, args.warmup, args.repeats)
    last = float(metrics["loss"])
    if not last < loss:  # also when it is not a number
        harness.fail(f"training does not lower the loss: it was {loss:.4g} and became {last:.4g}")

    tokens_per_step = args.global_batch * args.context
    flops_per_token = flops.per_token(config, args.context)
    result = measure.result(
        args,
        benchmark="train_step",
        quantity=f"{args.dtype} training throughput",
        unit="tokens/s",
        formula="global_batch * context / t",
        work=tokens_per_step,
        checks=[check],
        seconds=seconds,
        flops_per_token=flops_per_token,
        model_tflops_per_device=tokens_per_step
        * flops_per_token
        / np.median(seconds)
        / mesh.size
        / 1e12,
        loss={"unit": "nats per token", "first": loss, "last": last},
    )
    harness.write_json(args.out, result)


if __name__ == "__main__":
    main()
