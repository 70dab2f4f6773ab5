"""Checks of checkpoints at which trainings begin."""

from pathlib import Path
from typing import Any

import pytest
from examples import make_training
from jaxway.preflight.origin import check_origins


def problems(name: str, validate_every: int | None = None) -> list[str]:
    base = make_training(steps=300, keep_every=100, validate_every=validate_every)
    options: dict[str, Any] = {"from": name}
    found = check_origins({"train.b": make_training(**options)}, {"a": base})
    return [str(each) for each in found]


@pytest.mark.parametrize("name", ["a", "a@100", "a@300", "a@best", "a@7", "here/state@7"])
def test_checkpoint_that_is_or_will_be_there(tmp_path: Path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    for state in ("here/state", "results/train/a/state"):
        Path(state, "checkpoints/7").mkdir(parents=True)
    assert problems(name, validate_every=50) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a@150", "a keeps no checkpoint of step 150, but that of its last, 300, and those of"),
        ("a@400", "a keeps no checkpoint of step 400"),
        ("a@best", "a has no validate_every"),
        ("here/state", "no checkpoints in here/state"),
    ],
)
def test_checkpoint_that_will_not_be_there(tmp_path: Path, monkeypatch, name, problem) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = problems(name)
    assert f"train.b.from: {problem}" in found and "[JW315]" in found
