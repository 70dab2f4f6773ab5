"""Presets are named by their size, and what is null in a training follows from the rest."""

from typing import Any

import pytest
from examples import make_training
from jaxway_shared import presets

VOCABULARY = 50304  # GPT-2's, padded to a multiple of 128
UNITS = {"M": 1e6, "B": 1e9}


def resolve(**options: Any) -> dict[str, Any]:
    return presets.resolve(make_training(**options).options)


@pytest.mark.parametrize("name", sorted(presets.PRESETS.keys() - {"tiny"}))
def test_name_of_a_preset_is_its_size(name: str) -> None:
    sizes = resolve(preset=name)
    shape = (sizes[key] for key in ("width", "heads", "kv_heads", "mlp", "mlp_width"))
    count = sizes["layers"] * presets.layer_parameters(*shape) + VOCABULARY * sizes["width"]
    assert sizes["tied_embeddings"]
    assert count == pytest.approx(float(name[:-1]) * UNITS[name[-1]], rel=0.025)


def test_sizes_that_are_null_follow_from_others() -> None:
    sizes = resolve(preset="124M", heads=6, mlp="gated")
    assert (sizes["kv_heads"], sizes["mlp_width"]) == (6, 2048)  # 8/3 x 768
    assert resolve(width=96, mlp="gated")["mlp_width"] == 256
    assert resolve(width=96)["mlp_width"] == 384
    assert resolve(kv_heads=1, mlp_width=7)["kv_heads"] == 1


@pytest.mark.parametrize(
    ("schedule", "steps", "decay"),
    [("cosine", 100, None), ("linear", 100, None), ("constant", None, None), ("wsd", 100, 20)],
)
def test_steps_of_a_schedule(schedule: str, steps: int | None, decay: int | None) -> None:
    for options in ({"steps": 100}, {"steps": 90, "schedule_steps": 100}):
        found = resolve(schedule=schedule, **options)
        assert (found["schedule_steps"], found["decay_steps"]) == (steps, decay)
    assert resolve(schedule=schedule, decay_steps=7)["decay_steps"] == (decay and 7)
