"""Sizes of the model that trainings may name instead of saying them one by one."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

NGRAM_BITS = 12  # a table of n-grams has 2**12 rows
BYTES_OF_A_PARAMETER = 12  # float32, and AdamW's two moments
MAX_LOGITS = 2**28  # logits that are held at once, at most: 1 GiB
# What shapes a model of a vocabulary; other options are how it is computed and trained.
SHAPE = (
    *("layers", "width", "heads", "kv_heads"),
    *("mlp", "mlp_width", "tied_embeddings", "ngram"),
)


class Preset(NamedTuple):
    layers: int
    width: int
    heads: int
    context: int  # tokens
    ngram: int
    tied_embeddings: bool
    learning_rate: float


# Sizes of GPT-2 (Radford et al. 2019) and, from 1.3B on, of GPT-3 and llm-foundry, so that speeds
# can be compared. A name says how many parameters there are with GPT-2's vocabulary. Learning rates
# are about those of GPT-3 (Brown et al. 2020, table 2.1).
PRESETS = {
    "tiny": Preset(2, 128, 2, 128, 4, False, 1e-2),
    "124M": Preset(12, 768, 12, 1024, 1, True, 6e-4),
    "350M": Preset(24, 1024, 16, 1024, 1, True, 3e-4),
    "774M": Preset(36, 1280, 20, 1024, 1, True, 2.5e-4),
    "1.3B": Preset(24, 2048, 16, 2048, 1, True, 2e-4),
    "2.7B": Preset(32, 2560, 20, 2048, 1, True, 1.6e-4),
    "6.7B": Preset(32, 4096, 32, 2048, 1, True, 1.2e-4),
}


def default_mlp_width(width: int, mlp: str) -> int:
    """Width of an MLP: 4 x that of the model; with a gate about as many parameters, as in Llama."""
    return math.ceil(8 * width / 3 / 64) * 64 if mlp == "gated" else 4 * width


def layer_parameters(width: int, heads: int, kv_heads: int, mlp: str, mlp_width: int) -> int:
    """Parameters of a layer, all in matrices: queries and output, keys and values, MLP."""
    attention = 2 * width**2 + 2 * width * kv_heads * (width // heads)
    return attention + (3 if mlp == "gated" else 2) * width * mlp_width


def padded(vocabulary: int) -> int:
    """Rows of the embeddings: a multiple of 128, for matrix units."""
    return math.ceil(vocabulary / 128) * 128


def parameter_counts(sizes: Mapping[str, Any], vocabulary: int) -> tuple[int, int]:
    """Parameters of all layers, and of embeddings and head; ``sizes``: resolved options."""
    shape = (sizes[key] for key in ("width", "heads", "kv_heads", "mlp", "mlp_width"))
    rows = padded(vocabulary) * (1 if sizes["tied_embeddings"] else 2)
    rows += (sizes["ngram"] - 1) * 2**NGRAM_BITS
    return sizes["layers"] * layer_parameters(*shape), sizes["width"] * rows


def resolve(options: Mapping[str, Any]) -> dict[str, Any]:
    """A training's options, those that are null being its preset's or following from others."""
    preset = PRESETS[options["preset"]]._asdict()
    found = {k: preset[k] if v is None and k in preset else v for k, v in options.items()}
    if found["kv_heads"] is None:
        found["kv_heads"] = found["heads"]
    if found["mlp_width"] is None:
        found["mlp_width"] = default_mlp_width(found["width"], found["mlp"])
    schedule, end = found["schedule"], found["schedule_steps"] or found["steps"]
    # What a schedule does not have is null, so that it makes no other training.
    found["schedule_steps"] = None if schedule == "constant" else end
    decay = found["decay_steps"] or max(1, end // 5)  # Haegele et al. 2024, section 3
    found["decay_steps"] = decay if schedule == "wsd" else None
    return found
