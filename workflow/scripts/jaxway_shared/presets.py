"""Sizes of the model that trainings may name instead of saying them one by one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

NGRAM_BITS = 12  # a table of n-grams has 2**12 rows


class Preset(NamedTuple):
    layers: int
    width: int
    heads: int
    context: int  # tokens
    ngram: int
    learning_rate: float


# Sizes and names are those of GPT-2 (Radford et al. 2019) and, from 1B on, of llm-foundry, so that
# speeds can be compared; their head is tied to the embeddings, here it has parameters of its own.
# Learning rates are about those of GPT-3 (Brown et al. 2020, table 2.1).
PRESETS = {
    "tiny": Preset(2, 128, 2, 128, 4, 1e-2),
    "124M": Preset(12, 768, 12, 1024, 1, 6e-4),
    "350M": Preset(24, 1024, 16, 1024, 1, 3e-4),
    "774M": Preset(36, 1280, 20, 1024, 1, 2.5e-4),
    "1B": Preset(24, 2048, 16, 2048, 1, 2e-4),
    "3B": Preset(32, 2560, 20, 2048, 1, 1.6e-4),
    "7B": Preset(32, 4096, 32, 2048, 1, 1.2e-4),
}


def resolve(options: Mapping[str, Any]) -> dict[str, Any]:
    """A training's options, those that are null being its preset's or following from others."""
    preset = PRESETS[options["preset"]]._asdict()
    found = {k: preset[k] if v is None and k in preset else v for k, v in options.items()}
    schedule, end = found["schedule"], found["schedule_steps"] or found["steps"]
    # What a schedule does not have is null, so that it makes no other training.
    found["schedule_steps"] = None if schedule == "constant" else end
    decay = found["decay_steps"] or max(1, end // 5)  # Haegele et al. 2024, section 3
    found["decay_steps"] = decay if schedule == "wsd" else None
    return found
