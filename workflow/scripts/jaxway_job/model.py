"""A decoder-only transformer: a pytree of parameters, pure functions, and how both are sharded.

Pre-norm RMSNorm without gain, rotary positions, normalised queries and keys, an MLP with squared
ReLU or a gate and, for small vocabularies, an embedding of the last tokens together (n-grams)
beside that of each token. Groups of heads may share keys and values, and the head the embeddings.
A name ends in the sizes of its axes: L layers, B sequences, T positions, D width, H heads, K width
of a head, G heads of keys and values, P width of the queries, key and value of one of them, F width
of the MLP, V vocabulary, R rows of a table of n-grams.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxway_shared.presets import NGRAM_BITS, default_mlp_width

AXES = ("data", "fsdp", "tensor")  # of the mesh
SHARDING = {  # axis of an array: axes of the mesh over which it is sharded
    "B": ("data", "fsdp"),
    "D": "fsdp",
    "F": "tensor",
    "G": "tensor",
    "H": "tensor",
    "V": "tensor",
}
EMBEDDINGS = ("embed_VxD", "ngrams_RxD")
SMALL_TABLE = 1024  # rows of an embedding; where a lookup is faster was not measured
Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Shape of a model, and how it is computed.

    ``dtype`` is that of activations; parameters are always float32. ``ngram`` is the number of
    tokens in the longest n-grams embedded; 1: single tokens only. ``remat`` says what the backward
    pass recomputes: nothing, all but matrix products (dots), or everything (full). ``unroll``:
    layers follow one another in the program, in place of a loop that copies what the backward pass
    needs into stacks and out of them again.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int = 256
    kv_heads: int | None = None  # of keys and values, each for a group of heads; None: as heads
    mlp: str = "relu2"  # or gated, by SiLU
    mlp_width: int | None = None  # None: default_mlp_width()
    tied_embeddings: bool = False  # the head has no parameters of its own
    ngram: int = 1
    document_end: int | None = None  # attention and n-grams stop behind this token; None: nowhere
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False
    mesh: Mesh | None = None  # None: one device

    def __post_init__(self) -> None:
        """Raises ValueError when the heads do not divide the width into parts of even size."""
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of {self.heads} heads")
        if self.heads % self.G:
            raise ValueError(f"{self.heads} heads are not a multiple of {self.G} kv_heads")

    @property
    def G(self) -> int:  # noqa: N802
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def F(self) -> int:  # noqa: N802
        """Width of the MLP."""
        return self.mlp_width or default_mlp_width(self.width, self.mlp)

    @property
    def on_gpu(self) -> bool:
        """Whether it is computed on GPUs, which may be others than this process has."""
        device = self.mesh.devices.flat[0] if self.mesh else jax.devices()[0]
        return device.platform == "gpu"

    @property
    def on_several(self) -> bool:
        """Whether it is computed on more than one device."""
        return self.mesh is not None and self.mesh.size > 1


# --------------------------------------------------------------------------------------- sharding


def partition_spec(name: str) -> PartitionSpec:
    """How an array is sharded whose name ends in its axes, such as ``up_LxDxF``."""
    return PartitionSpec(*(SHARDING.get(axis) for axis in name.rpartition("_")[2].split("x")))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """For each array of a tree, parameters or an optimizer's moments, its sharding."""

    def sharding(path: Any, leaf: Array) -> NamedSharding:
        names = [str(key.key) for key in path if "_" in str(getattr(key, "key", ""))]
        spec = partition_spec(names[-1]) if names and leaf.ndim else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


BATCH = PartitionSpec(SHARDING["B"])  # of tokens and activations: by their first axis
HEAD = PartitionSpec(None, SHARDING["V"])  # while it is used: gathered once, not for each chunk


def constrain(config: Config, x: Array, spec: PartitionSpec = BATCH) -> Array:
    """``x``, sharded over the mesh."""
    if config.mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(config.mesh, spec))


# ------------------------------------------------------------------------------------------ model


def init(config: Config, key: Array) -> Params:
    """Random parameters, float32. The layers' have a leading axis L, over which forward() scans."""
    L, D, H, G, F, V = (
        *(config.layers, config.width, config.heads),
        *(config.G, config.F, config.vocabulary),
    )
    keys = jax.random.split(key, 4)
    qkv_LxDxGxP = jax.random.normal(keys[1], (L, D, G, (H // G + 2) * D // H))
    layers = {
        "qkv_LxDxGxP": qkv_LxDxGxP * D**-0.5,
        "out_LxHxKxD": jnp.zeros((L, H, D // H, D)),
        "up_LxDxF": jax.random.normal(keys[2], (L, D, F)) * D**-0.5,
        "down_LxFxD": jnp.zeros((L, F, D)),
    }
    if config.mlp == "gated":
        gate_LxDxF = jax.random.normal(jax.random.fold_in(keys[2], 1), (L, D, F))
        layers["gate_LxDxF"] = gate_LxDxF * D**-0.5
    # Residual branches end in zeros and the head is small: the first prediction is nearly uniform.
    # Tied embeddings are larger, since the first updates are large beside small ones, up to where
    # each token would predict itself: its own logit is their spread x D.
    tied = min(0.2 * D**-0.5, math.log1p(V / 20) / D)
    params = {
        "embed_VxD": jax.random.normal(keys[0], (V, D)) * (tied if config.tied_embeddings else 1),
        "ngrams_RxD": [jnp.zeros((2**NGRAM_BITS, D)) for _ in range(2, config.ngram + 1)],
        "layers": layers,
    }
    if not config.tied_embeddings:
        params["head_DxV"] = jax.random.normal(keys[3], (D, V)) * 0.1 * D**-0.5
    return params


def embed(config: Config, params: Params, tokens_BxT: Array) -> Array:
    """Sum BxTxD of the embeddings of each token and of the n-grams that end with it.

    A hash of an n-gram picks its row (Pagnoni et al. 2024, Byte Latent Transformer, 3.2.1), so
    what follows a common n-gram is learnt soon, at the cost of a lookup.

    Thousands of positions may have the same token, whose gradients a GPU adds one after the other:
    in float32, as a sum in bfloat16 loses what is small beside it, or for a small table by a
    product.
    """

    def look_up(table: Array, row_BxT: Array) -> Array:
        # Each device has the whole table for it: XLA is bad at lookups in parts of one.
        table_RxD = constrain(config, table, PartitionSpec())
        R = len(table_RxD)
        if config.on_gpu and config.dtype == "bfloat16" and R <= SMALL_TABLE:
            picks_BxTxR = jax.nn.one_hot(row_BxT.astype(jnp.int32), R, dtype=config.dtype)
            return constrain(config, matmul(picks_BxTxR, table_RxD))
        return constrain(config, widen(table_RxD)[row_BxT].astype(config.dtype))

    x_BxTxD = look_up(params["embed_VxD"], tokens_BxT)
    token = key = tokens_BxT.astype(jnp.uint32)
    for table_RxD in params["ngrams_RxD"]:
        if config.document_end is not None:
            key = jnp.where(tokens_BxT == config.document_end, 0, key)
        key = jnp.pad(key, ((0, 0), (1, 0)))[:, :-1] * jnp.uint32(0x01000193) + token
        row_BxT = (key * jnp.uint32(0x9E3779B1)) >> jnp.uint32(32 - NGRAM_BITS)
        x_BxTxD += look_up(table_RxD, row_BxT)
    return x_BxTxD


def widen(x: Array) -> Array:
    """``x`` in float32, or in float64 if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def norm(x: Array) -> Array:
    """RMSNorm over the last axis, computed in float32."""
    x32 = widen(x)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)
    return (x32 * scale).astype(x.dtype)


def rotate(config: Config, x_BxTxHxK: Array) -> Array:
    """Rotary positions (Su et al. 2021): turn pairs of components by position x frequency."""
    _, T, _, K = x_BxTxHxK.shape
    # XLA on the CPU would compute these again for each head of each sequence.
    on = jnp if config.on_gpu else np
    frequency = 10000.0 ** (-on.arange(0, K, 2) / K)
    angle_Tx1xK2 = (on.arange(T)[:, None] * frequency)[:, None, :]
    cos, sin = jnp.asarray(on.cos(angle_Tx1xK2)), jnp.asarray(on.sin(angle_Tx1xK2))
    a, b = jnp.split(widen(x_BxTxHxK), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


def sdpa(
    config: Config,
    q_BxTxHxK: Array,
    k_BxTxGxK: Array,
    v_BxTxGxK: Array,
    document_BxT: Array | None = None,
) -> Array:
    """Causal attention BxTxHxK: by cuDNN on a GPU where it can, else by XLA.

    ``document_BxT``: the document of each position, to which it attends alone.
    """
    (B, T, _, K), G = q_BxTxHxK.shape, config.G
    fits = q_BxTxHxK.dtype == jnp.bfloat16 and K % 8 == 0 and K <= 128  # cuDNN's limits
    if config.on_gpu and fits and document_BxT is None:
        return jax.nn.dot_product_attention(
            q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, is_causal=True, implementation="cudnn"
        )
    # XLA computes all products, also those that the mask hides. A quarter of the positions at a
    # time, with the keys that these can see, it has 3/8 fewer to compute and to hold. Heads come
    # first, so that it copies little. M: heads that share keys and values.
    wide = jnp.promote_types(q_BxTxHxK.dtype, jnp.float32)
    M = config.heads // G
    q_BxGxMxTxK = jnp.moveaxis((q_BxTxHxK * K**-0.5).reshape(B, T, G, M, K), 1, 3)
    k_BxGxTxK, v_BxGxTxK = k_BxTxGxK.swapaxes(1, 2), v_BxTxGxK.swapaxes(1, 2)
    parts = []
    for at in np.array_split(np.arange(T), 4):
        end, row = at[-1] + 1, np.tile(at, M)
        mask = jnp.asarray(row[:, None] >= np.arange(end))
        if document_BxT is not None:
            same = document_BxT[:, row, None] == document_BxT[:, None, :end]
            mask &= same[:, None]
        q = q_BxGxMxTxK[:, :, :, at[0] : end].reshape(B, G, -1, K)
        k, v = k_BxGxTxK[:, :, :end], v_BxGxTxK[:, :, :end]
        products = jnp.einsum("bgtk,bgsk->bgts", q, k, preferred_element_type=wide)
        share = jax.nn.softmax(jnp.where(mask, products, jnp.finfo(wide).min)).astype(v.dtype)
        parts.append(jnp.einsum("bgts,bgsk->bgtk", share, v).reshape(B, G, M, -1, K))
    attended_BxGxMxTxK = jnp.concatenate(parts, axis=3)
    return jnp.moveaxis(attended_BxGxMxTxK, 3, 1).reshape(q_BxTxHxK.shape)


def matmul(x: Array, weight: Array) -> Array:
    """Matrix product over the last axis of ``x`` and the first of ``weight``, both as matrices.

    XLA on the CPU needs up to twice as long for the gradient of a product of more axes.
    """
    rows = x.reshape(-1, weight.shape[0]) @ weight.reshape(weight.shape[0], -1)
    return rows.reshape(*x.shape[:-1], *weight.shape[1:])


def attention(config: Config, layer: Params, x_BxTxD: Array, document_BxT: Array | None) -> Array:
    """Causal self-attention."""
    (B, T, D), H, G = x_BxTxD.shape, config.heads, config.G
    weights_DxGxP, ends = layer["qkv_LxDxGxP"], [D // G, D // G + D // H]
    if config.on_gpu:  # three products leave three arrays, as cuDNN wants them
        parts = [matmul(x_BxTxD, weight) for weight in jnp.split(weights_DxGxP, ends, axis=-1)]
    else:
        parts = jnp.split(matmul(x_BxTxD, weights_DxGxP), ends, axis=-1)
    q_BxTxHxK, (k_BxTxGxK, v_BxTxGxK) = parts[0].reshape(B, T, H, D // H), parts[1:]
    q_BxTxHxK, k_BxTxGxK = (rotate(config, norm(x)) for x in (q_BxTxHxK, k_BxTxGxK))
    attended_BxTxHxK = sdpa(config, q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, document_BxT)
    out_HKxD = layer["out_LxHxKxD"].reshape(D, D)
    return matmul(attended_BxTxHxK.reshape(B, T, D), out_HKxD)


def mlp(config: Config, layer: Params, x_BxTxD: Array) -> Array:
    """Squared ReLU (So et al. 2021), which learns like a gated unit with fewer passes over memory,
    or a unit gated by SiLU (Shazeer 2020, SwiGLU)."""
    h_BxTxF = matmul(x_BxTxD, layer["up_LxDxF"])
    if config.mlp == "gated":
        h_BxTxF *= jax.nn.silu(matmul(x_BxTxD, layer["gate_LxDxF"]))
    else:
        h_BxTxF = jnp.square(jax.nn.relu(h_BxTxF))
    return matmul(h_BxTxF, layer["down_LxFxD"])


@jax.custom_vjp
def in_turn(x: Array, layer: Params) -> tuple[Array, Params]:
    """A layer's input and parameters: their gradients are all there before other layers' begin.

    Else XLA puts products for which nothing waits yet, those that make the gradients of parameters,
    behind those of all layers, and so holds what they need of all layers.
    """
    return x, layer


in_turn.defvjp(lambda x, layer: ((x, layer), None), lambda _, g: jax.lax.optimization_barrier(g))


def forward(config: Config, params: Params, tokens_BxT: Array) -> Array:
    """Input BxTxD of the head, at each position."""
    params = jax.tree.map(lambda p: p.astype(config.dtype), params)
    document_BxT = None
    if config.document_end is not None:
        ends_BxT = (tokens_BxT == config.document_end).astype(jnp.int32)
        document_BxT = jnp.cumsum(ends_BxT, axis=1) - ends_BxT  # how many end before

    def block(x_BxTxD: Array, layer: Params) -> tuple[Array, None]:
        if config.unroll and config.on_several:
            x_BxTxD, layer = in_turn(x_BxTxD, layer)
        x_BxTxD += attention(config, layer, norm(x_BxTxD), document_BxT)
        x_BxTxD += mlp(config, layer, norm(x_BxTxD))
        return constrain(config, x_BxTxD), None

    if config.remat != "none":
        policies = jax.checkpoint_policies
        policy = policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        # In a loop XLA cannot merge what is computed twice; outside one it would.
        block = jax.checkpoint(block, policy=policy, prevent_cse=config.unroll)
    x_BxTxD = constrain(config, norm(embed(config, params, tokens_BxT)))
    unroll = config.layers if config.unroll else 1
    x_BxTxD, _ = jax.lax.scan(block, x_BxTxD, params["layers"], unroll=unroll)
    return norm(x_BxTxD)


def head(config: Config, params: Params) -> Array:
    """Weights DxV of the head."""
    weights_DxV: Array = params["embed_VxD"].T if config.tied_embeddings else params["head_DxV"]
    return weights_DxV.astype(config.dtype)


def logits(config: Config, params: Params, tokens_BxT: Array) -> Array:
    """Logits BxTxV, float32: at each position for the token that follows it."""
    return widen(forward(config, params, tokens_BxT) @ head(config, params))


def parameter_count(params: Params) -> int:
    """Number of parameters."""
    return sum(p.size for p in jax.tree.leaves(params))
