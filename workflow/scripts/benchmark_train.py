"""Speed of the training step of train.py, forward, backward and update, on one fixed batch.

The batch counts upwards from random tokens, which a model learns within a few steps, so a step that
does not lower the loss is wrong. MFU counts the matrix products only (flops.per_token), over the
peak of all devices. Weak scaling: ``batch_per_device``, swept over nodes; strong scaling:
``global_batch``.
"""

import argparse
import math
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxway_job import flops, measure, model, optimization, runtime
from jaxway_shared import presets
from jaxway_shared.benchmark import TRAINED, LossChange, RoundMeasurement
from jaxway_shared.errors import UserError, fail

OPTIONS = {
    "presets": {
        "type": ["array", "null"],
        "minItems": 1,
        "items": {
            "type": "string",
            "enum": ["tiny", "124M", "350M", "774M", "1.3B", "2.7B", "6.7B"],
        },
        "default": None,
        "description": "sizes of model; null, tiny on a CPU and 124M on a GPU",
    },
    "heads": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "attention heads, in place of the preset's",
    },
    "batch_per_device": {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "sequences per step and device",
    },
    "global_batch": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "sequences per step on all devices together, in place of batch_per_device",
    },
    "vocabulary": {
        "type": ["integer", "null"],
        "minimum": 2,
        "default": None,
        "description": "number of tokens; null, 256 on a CPU and 50304, as GPT-2's, on a GPU",
    },
    "fsdp": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "devices that share one copy of the parameters",
    },
    "remat": {
        "type": "string",
        "enum": ["none", "dots", "full"],
        "default": "none",
        "description": "what the backward pass computes again",
    },
    "unroll": {
        "type": "boolean",
        "default": True,
        "description": "layers one after the other in place of a loop",
    },
    "xla": {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["boolean", "integer", "number", "string", "null"]},
        "default": None,
        "description": "options of XLA's compiler (docs/training.md)",
    },
}


def make_batch(mesh: Mesh, batch: int, context: int, vocabulary: int) -> jax.Array:
    """Sequences that count upwards, each from a random token, over all devices."""
    first = np.random.default_rng(0).integers(0, vocabulary, (batch, 1))
    rows = ((first + np.arange(context + 1)) % vocabulary).astype(np.int32)
    return jax.make_array_from_callback(
        rows.shape, NamedSharding(mesh, model.BATCH), lambda index: rows[index]
    )


def make_config(args: argparse.Namespace, mesh: Mesh, preset: str) -> tuple[model.Config, int]:
    """One size of model, and the length of its sequences."""
    platform = mesh.devices.flat[0].platform
    _, vocabulary, dtype = TRAINED[platform]
    sizes = presets.PRESETS[preset]
    config = model.Config(
        layers=sizes.layers,
        width=sizes.width,
        heads=args.heads or sizes.heads,
        tied_embeddings=sizes.tied_embeddings,
        ngram=sizes.ngram,
        vocabulary=args.vocabulary or vocabulary,
        dtype=dtype,
        remat=args.remat,
        unroll=args.unroll,
        mesh=mesh,
    )
    return config, sizes.context


def measure_step(args: argparse.Namespace, mesh: Mesh, preset: str) -> RoundMeasurement:
    """Speed of the step of one size of model."""
    config, context = make_config(args, mesh, preset)
    batch = args.global_batch or args.batch_per_device * mesh.size
    if batch % mesh.size:
        raise UserError("JW452", f"global_batch {batch} is not a multiple of {mesh.size} devices")
    # Slow enough for every width; the rate does not change the work.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))

    def initial() -> optimization.Tree:
        params = model.init(config, jax.random.key(0))
        return {"params": params, "optimizer": optimizer.init(params)}

    shardings = model.shardings(mesh, jax.eval_shape(initial))
    state = jax.block_until_ready(jax.jit(initial, out_shardings=shardings)())
    tokens = make_batch(mesh, batch, context, config.vocabulary)
    actions = np.zeros(mesh.size, np.int32)
    train_step = partial(optimization.train_step, config, optimizer, 1)
    # The next step takes the state as this one leaves it.
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
    lowered = jitted.lower(state, tokens, actions)
    step = optimization.compile_step(lowered, mesh, args.xla)
    state, metrics = step(state, tokens, actions)
    # Before training all tokens are about equally likely; the logits have a spread of 0.1.
    loss = float(metrics["loss"])
    check = measure.check("the first loss", abs(loss - math.log(config.vocabulary)), 0.1)

    def call() -> optimization.Tree:
        nonlocal state, metrics
        state, metrics = step(state, tokens, actions)
        return metrics

    samples = measure.collect_samples(call, args)
    if not (last := float(metrics["loss"])) < loss:  # also when it is not a number
        raise measure.IncorrectResultError(
            f"training does not lower the loss: it was {loss:.4g} and became {last:.4g}"
        )
    speed = batch * context / float(np.median(samples.seconds))
    peak = flops.peak(jax.devices()[0].device_kind)
    full, causal = (flops.per_token(config, context, causal) for causal in (False, True))
    return measure.measurement(
        quantity="training throughput",
        unit="tokens/s",
        formula="global_batch * context / t",
        work=batch * context,
        check=check,
        tokens_per_call=batch * context,
        model_tflops_per_device=speed * full / mesh.size / 1e12,
        mfu=peak and speed * full / mesh.size / peak,
        mfu_causal=peak and speed * causal / mesh.size / peak,
        loss=LossChange("nats per token", loss, last),
        memory=measure.memory_use(step),
        samples=samples,
    )


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    if args.devices % args.fsdp:
        fail("JW452", f"fsdp {args.fsdp} does not divide {args.devices} devices")
    mesh = Mesh(runtime.start(args).devices.reshape(-1, args.fsdp, 1), model.AXES)
    presets = args.presets or [TRAINED[mesh.devices.flat[0].platform][0]]
    measure.write(
        args,
        (measure.run_case(partial(measure_step, args, mesh, x), preset=x) for x in presets),
    )


if __name__ == "__main__":
    main()
