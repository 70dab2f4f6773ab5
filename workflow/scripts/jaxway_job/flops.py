"""Arithmetic of a training step, and what share of a device's peak it reaches (MFU)."""

from jaxway_shared import presets

from jaxway_job import model

# Dense bfloat16 peak of one device, FLOP/s, by what JAX calls its kind. From NVIDIA's data sheets:
# A100 (2021), H100 (2023), H200 (2024), GH200 (2024), V100 (2020, half precision). Half of what
# they state with sparsity.
PEAKS = {
    "A100": 312e12,
    "GH200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "V100": 125e12,
}


def per_token(config: model.Config, context: int, causal: bool = False) -> int:
    """FLOPs of the matrix products of one training step, per token: 6 N + 12 L D T.

    The "full" count, as in PaLM (Chowdhery et al. 2022, appendix B) and llm-foundry: attention
    counts all T positions. The ``causal`` one counts the half that a causal mask needs, 6 L D T. N
    leaves out embeddings, as lookups.
    """
    L, D = config.layers, config.width
    layer = presets.layer_parameters(D, config.heads, config.G, config.mlp, config.F)
    n = L * layer + D * config.vocabulary
    return 6 * n + (6 if causal else 12) * L * D * context


def peak(device_kind: str) -> float | None:
    """Peak of a device such as ``NVIDIA A100-SXM4-40GB``, FLOP/s; None where it is not known."""
    return next((value for kind, value in PEAKS.items() if kind in device_kind), None)
