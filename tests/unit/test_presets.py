"""Presets are named after other models; docs/training.md says how many parameters ours have."""

import re
from pathlib import Path

import pytest
from jaxway_shared.presets import PRESETS

VOCABULARY = 50304  # GPT-2's, padded to a multiple of 128
DOCS = (Path(__file__).parents[2] / "docs/training.md").read_text()


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"tiny"}))
def test_parameters_are_those_in_the_docs(name: str) -> None:
    preset = PRESETS[name]
    count = 12 * preset.layers * preset.width**2 + 2 * VOCABULARY * preset.width
    shown = f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.0f} M"
    assert re.search(rf"`{name}` (has )?{shown}\b", DOCS.replace("\n", " "))
