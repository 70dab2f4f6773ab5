"""The loss of the transformer in model.py: cross entropy, whose logits are never all in memory.

Names end in axes as there; C: positions of a chunk, N: chunks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxway_shared.presets import MAX_LOGITS

from jaxway_job.model import HEAD, Config, Params, constrain, forward, head, widen


def loss(
    config: Config, params: Params, tokens_BxT1: Array, weight_BxT: Array | None = None
) -> Array:
    """Nats that each token after a sequence's first costs, given those before it: their mean, or,
    with weights, their weighted sum."""
    tokens_BxT, target_BxT = tokens_BxT1[:, :-1], tokens_BxT1[:, 1:].astype(jnp.int32)
    if weight_BxT is None:
        weight_BxT = jnp.full(target_BxT.shape, 1 / target_BxT.size, jnp.float32)
    x_BxTxD = forward(config, params, tokens_BxT)
    head_DxV = constrain(config, head(config, params), HEAD)
    return cross_entropy(config, x_BxTxD, head_DxV, target_BxT, weight_BxT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def cross_entropy(
    config: Config, x_BxTxD: Array, head_DxV: Array, target_BxT: Array, weight_BxT: Array
) -> Array:
    """Weighted sum of the nats that the targets cost, given what the head sees before each.

    Logits are computed a chunk of positions at a time, and their gradient with them. So they are
    never all held, and the head costs three matrix products, not a fourth to have them again.
    """
    return sum_over_chunks(config, x_BxTxD, head_DxV, target_BxT, weight_BxT, gradient=False)[0]


def log_sum_exp(config: Config, x: Array) -> Array:
    """Logarithm of the sum of exponentials over the last axis."""
    if not config.on_gpu:
        return jax.nn.logsumexp(x, axis=-1)

    # One pass over memory finds maximum and sum; XLA makes two of the above.
    def combine(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        largest = jnp.maximum(a[0], b[0])
        return largest, a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest)

    nothing = jnp.finfo(x.dtype).min, jnp.zeros((), x.dtype)
    largest, total = jax.lax.reduce((x, jnp.ones_like(x)), nothing, combine, (x.ndim - 1,))
    return largest + jnp.log(total)


def sum_over_chunks(
    config: Config,
    x_BxTxD: Array,
    head_DxV: Array,
    target_BxT: Array,
    weight_BxT: Array,
    gradient: bool,
) -> tuple[Array, Array, Array]:
    """The sum of cross_entropy() and, if wanted, its gradients by ``x`` and ``head``."""
    (B, T), V = target_BxT.shape, head_DxV.shape[1]
    wide = jnp.promote_types(x_BxTxD.dtype, jnp.float32)
    C = next(c for c in range(T, 0, -1) if T % c == 0 and (c == 1 or B * c * V <= MAX_LOGITS))

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(B, T // C, C, *x.shape[2:]), 1, 0)

    def add(sums: tuple[Array, Array], chunk: Any) -> Any:
        total, dhead_DxV = sums
        x_BxCxD, target_BxC, weight_BxC = chunk
        # In memory they have the type of activations.
        logits_BxCxV = widen(jnp.einsum("bcd,dv->bcv", x_BxCxD, head_DxV))
        hit_BxCxV = target_BxC[..., None] == jnp.arange(V)
        log_sum_BxC = log_sum_exp(config, logits_BxCxV)
        nats_BxC = log_sum_BxC - jnp.sum(logits_BxCxV, axis=-1, where=hit_BxCxV)
        total += jnp.sum(nats_BxC * weight_BxC)
        if not gradient:
            return (total, dhead_DxV), x_BxCxD
        dlogits_BxCxV = jnp.exp(logits_BxCxV - log_sum_BxC[..., None]) - hit_BxCxV
        dlogits_BxCxV = (dlogits_BxCxV * weight_BxC[..., None]).astype(x_BxCxD.dtype)
        rows = x_BxCxD.reshape(-1, x_BxCxD.shape[-1]), dlogits_BxCxV.reshape(-1, V)
        part_DxV = jnp.einsum("nd,nv->dv", *rows, preferred_element_type=wide)
        dhead_DxV += constrain(config, part_DxV, HEAD)
        return (total, dhead_DxV), jnp.einsum("bcv,dv->bcd", dlogits_BxCxV, head_DxV)

    zeros = jnp.zeros((), wide), jnp.zeros(head_DxV.shape, wide)
    inputs = tuple(map(chunks, (x_BxTxD, target_BxT, weight_BxT)))
    (total, dhead_DxV), dx_NxBxCxD = jax.lax.scan(add, zeros, inputs)
    return total, jnp.moveaxis(dx_NxBxCxD, 0, 1).reshape(x_BxTxD.shape), dhead_DxV


def cross_entropy_forward(
    config: Config, x: Array, head: Array, target: Array, weight: Array
) -> Any:
    total, dx, dhead = sum_over_chunks(config, x, head, target, weight, gradient=True)
    return total, (dx, dhead.astype(head.dtype))


def cross_entropy_backward(config: Config, gradients: tuple[Array, Array], g: Array) -> Any:
    dx, dhead = gradients
    return g.astype(dx.dtype) * dx, g.astype(dhead.dtype) * dhead, None, None


cross_entropy.defvjp(cross_entropy_forward, cross_entropy_backward)
