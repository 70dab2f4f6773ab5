"""One training step: gradient, clipping, AdamW with its schedule."""

import argparse
import os
import platform
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxway_shared.errors import fail

from jaxway_job import cross_entropy, model, runtime

Tree = dict[str, Any]


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Options of XLA for a step on these devices, but those that XLA_FLAGS has."""
    options: dict[str, Any] = {}
    if mesh.devices.flat[0].platform == "gpu":
        # Else sums between layers go through memory in float32, twice what they are meant to be.
        options["xla_allow_excess_precision"] = False
        if mesh.size > 1:
            # Else collectives block what could run beside them.
            options["xla_gpu_enable_latency_hiding_scheduler"] = True
    elif jax.__version_info__ >= (0, 10) and platform.machine() == "x86_64":
        # oneDNN computes matrix products, in 0.8 of the time of YNNPACK, XLA's own choice (one core
        # with AVX2; Arm was not measured). Each product alone: together with what follows, some
        # were wrong, and some ended the program.
        options["xla_cpu_use_onednn"] = True
        options["xla_cpu_experimental_onednn_fusion_type"] = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in flags}


def compile_step(lowered: Any, mesh: Mesh, chosen: Mapping[str, Any] | None) -> Any:
    """A step for these devices, with the options of XLA that a user has ``chosen``.

    Ends the program where XLA does not know one.
    """
    options = {**compiler_options(mesh), **(chosen or {})}
    # Of a program with oneDNN's products, which cannot be cached, JAX warns.
    warnings.filterwarnings("ignore", "(?s)Error writing persistent compilation cache.*onednn")
    try:
        return lowered.compile({name: x for name, x in options.items() if x is not None})
    except RuntimeError as error:
        if chosen and ("No such compile option" in str(error) or "setting option" in str(error)):
            fail("JW317", f"xla: {runtime.first_line(error)} (JAX {runtime.JAX_VERSION})")
        raise


def make_schedule(args: argparse.Namespace) -> optax.Schedule:
    """The learning rate of a training after each number of updates."""
    peak, lowest, warmup = args.learning_rate, args.min_learning_rate, args.warmup_steps
    first = peak / (warmup + 1)  # not 0: each step learns
    parts, ends = [optax.linear_schedule(first, peak, warmup)], [warmup]
    if args.schedule == "constant":
        parts.append(optax.constant_schedule(peak))
    elif args.schedule == "cosine":
        steps = args.schedule_steps - warmup
        parts.append(optax.cosine_decay_schedule(peak, steps, alpha=lowest / peak))
    else:
        if args.schedule == "wsd":
            parts.append(optax.constant_schedule(peak))
            ends.append(args.schedule_steps - args.decay_steps)
        parts.append(optax.linear_schedule(peak, lowest, args.schedule_steps - ends[-1]))
    return optax.join_schedules(parts, ends)


def make_optimizer(
    args: argparse.Namespace, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW after clipping of the gradient's norm."""

    def decaying(params: model.Params) -> dict[str, bool]:
        return {name: name not in model.EMBEDDINGS for name in params}

    adamw = optax.adamw(
        schedule,
        b1=args.beta1,
        b2=args.beta2,
        eps=args.epsilon,
        weight_decay=args.weight_decay,
        mask=None if args.decay_embeddings else decaying,
    )
    return (
        optax.chain(optax.clip_by_global_norm(args.clip_norm), adamw) if args.clip_norm else adamw
    )


def train_step(
    config: model.Config,
    optimizer: optax.GradientTransformation,
    accumulation_steps: int,
    state: Tree,
    tokens_BxT1: jax.Array,
    requested_actions: jax.Array,
) -> tuple[Tree, dict[str, jax.Array]]:
    """One update. Returns the new state and the step's ``loss`` (nats per token), gradient norm
    and the greatest of the processes' requested actions, which all learn with the step itself."""
    gradient_of = jax.value_and_grad(partial(cross_entropy.loss, config))

    def add(sums: Any, part: jax.Array) -> Any:
        return jax.tree.map(jnp.add, sums, gradient_of(state["params"], part)), None

    if accumulation_steps == 1:
        loss, gradient = gradient_of(state["params"], tokens_BxT1)
    else:
        # Each device's rows are spread over all parts, so no row moves to another device.
        parts = tokens_BxT1.reshape(-1, accumulation_steps, tokens_BxT1.shape[1]).swapaxes(0, 1)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state["params"]))
        sums, _ = jax.lax.scan(add, zeros, parts)
        loss, gradient = jax.tree.map(lambda x: x / accumulation_steps, sums)
    updates, moments = optimizer.update(gradient, state["optimizer"], state["params"])
    state = {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    return state, {"loss": loss, "gradient_norm": norm, "action": requested_actions.max()}
