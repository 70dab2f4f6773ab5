"""Decoder-only transformer over bytes: a pytree of parameters and pure functions.

Pre-norm RMSNorm without gain, rotary positions, normalised queries and keys, squared ReLU, and an
embedding of the last bytes together (n-grams) beside that of each byte.
A name ends in the sizes of its axes: L layers, B sequences, T positions (S for keys), D width,
H heads, K width of a head, F width of the MLP, V bytes that exist, R rows of a table of n-grams.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

VOCABULARY = 256
NGRAM_BITS = 12  # a table of n-grams has 2**12 rows
Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Shape of a model. ``dtype`` is that of activations; parameters are always float32."""

    layers: int
    width: int
    heads: int
    dtype: str = "float32"
    ngram: int = 1  # bytes in the longest n-grams embedded; 1: bytes only

    def __post_init__(self) -> None:
        """Raises ValueError when the heads do not divide the width into parts of even size."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of {self.heads} heads")


def init(config: Config, key: Array) -> Params:
    """Random parameters, float32. The layers' have a leading axis L, over which apply() scans."""
    L, D, F, V = config.layers, config.width, 4 * config.width, VOCABULARY
    keys = jax.random.split(key, 4)
    # Residual branches end in zeros and the head is small: the first prediction is nearly uniform.
    return {
        "embed_VxD": jax.random.normal(keys[0], (V, D)),
        "ngrams_RxD": [jnp.zeros((2**NGRAM_BITS, D)) for _ in range(2, config.ngram + 1)],
        "layers": {
            "qkv_LxDx3D": jax.random.normal(keys[1], (L, D, 3 * D)) * D**-0.5,
            "out_LxDxD": jnp.zeros((L, D, D)),
            "up_LxDxF": jax.random.normal(keys[2], (L, D, F)) * D**-0.5,
            "down_LxFxD": jnp.zeros((L, F, D)),
        },
        "head_DxV": jax.random.normal(keys[3], (D, V)) * 0.1 * D**-0.5,
    }


def embed(params: Params, tokens_BxT: Array) -> Array:
    """Sum BxTxD of the embeddings of each byte and of the n-grams that end with it.

    A hash of an n-gram picks its row (Pagnoni et al. 2024, Byte Latent Transformer, 3.2.1), so
    what follows a common n-gram is learnt soon, at the cost of a lookup.
    """
    x_BxTxD = params["embed_VxD"][tokens_BxT]
    byte = key = tokens_BxT.astype(jnp.uint32)
    for table_RxD in params["ngrams_RxD"]:
        key = jnp.pad(key, ((0, 0), (1, 0)))[:, :-1] * jnp.uint32(0x01000193) + byte
        row_BxT = (key * jnp.uint32(0x9E3779B1)) >> jnp.uint32(32 - NGRAM_BITS)
        x_BxTxD += table_RxD[row_BxT]
    return x_BxTxD


def norm(x: Array) -> Array:
    """RMSNorm over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)
    return (x32 * scale).astype(x.dtype)


def rotate(x_BxTxHxK: Array) -> Array:
    """Rotary positions (Su et al. 2021): turn pairs of components by position x frequency."""
    _, T, _, K = x_BxTxHxK.shape
    frequency = 10000.0 ** (-jnp.arange(0, K, 2) / K)
    angle_Tx1xK2 = (jnp.arange(T)[:, None] * frequency)[:, None, :]
    cos, sin = jnp.cos(angle_Tx1xK2), jnp.sin(angle_Tx1xK2)
    a, b = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


def attention(config: Config, layer: Params, x_BxTxD: Array) -> Array:
    """Causal self-attention."""
    B, T, D = x_BxTxD.shape
    heads = (B, T, config.heads, D // config.heads)
    q, k, v = jnp.split(x_BxTxD @ layer["qkv_LxDx3D"], 3, axis=-1)
    q_BxTxHxK = rotate(norm(q.reshape(heads)))
    k_BxSxHxK = rotate(norm(k.reshape(heads)))
    v_BxSxHxK = v.reshape(heads)
    mix_BxTxHxK = jax.nn.dot_product_attention(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, is_causal=True)
    return mix_BxTxHxK.reshape(B, T, D) @ layer["out_LxDxD"]


def mlp(layer: Params, x_BxTxD: Array) -> Array:
    """Squared ReLU (So et al. 2021): learns like a gated unit, with fewer passes over memory."""
    return jnp.square(jax.nn.relu(x_BxTxD @ layer["up_LxDxF"])) @ layer["down_LxFxD"]


def apply(config: Config, params: Params, tokens_BxT: Array) -> Array:
    """Logits BxTxV, float32: at each position for the byte that follows it."""
    params = jax.tree.map(lambda p: p.astype(config.dtype), params)

    def block(x_BxTxD: Array, layer: Params) -> tuple[Array, None]:
        x_BxTxD += attention(config, layer, norm(x_BxTxD))
        x_BxTxD += mlp(layer, norm(x_BxTxD))
        return x_BxTxD, None

    x_BxTxD, _ = jax.lax.scan(block, norm(embed(params, tokens_BxT)), params["layers"])
    return (norm(x_BxTxD) @ params["head_DxV"]).astype(jnp.float32)


def bits(config: Config, params: Params, tokens_BxT1: Array) -> Array:
    """Cost BxT of each byte after a sequence's first, given those before it. Unit: bits."""
    logp_BxTxV = jax.nn.log_softmax(apply(config, params, tokens_BxT1[:, :-1]))
    target_BxTx1 = tokens_BxT1[:, 1:, None].astype(jnp.int32)
    return -jnp.take_along_axis(logp_BxTxV, target_BxTx1, axis=-1)[..., 0] / math.log(2)


def parameter_count(params: Params) -> int:
    """Number of parameters."""
    return sum(p.size for p in jax.tree.leaves(params))


def flops_per_token(config: Config, context: int) -> int:
    """FLOPs of the matrix products of one training step, per byte: 6 N + 12 L H K T.

    "full" counting, as in PaLM (Chowdhery et al. 2022, appendix B) and llm-foundry: attention
    counts all T positions, though causal ones need half. N leaves out embeddings, as lookups.
    """
    L, D = config.layers, config.width
    n = L * 12 * D * D + D * VOCABULARY
    return 6 * n + 12 * L * D * context
