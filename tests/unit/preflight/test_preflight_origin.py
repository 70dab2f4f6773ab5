"""Checks of checkpoints at which trainings begin."""

from pathlib import Path

import pytest
from examples import make_training
from jaxway.config.jobs import TrainJob
from jaxway.preflight.origin import check_origins

BASE = {"steps": 300, "keep_every": 100}


def problems(base: TrainJob, name: str) -> list[str]:
    begins = make_training(**{"from": name})
    return [str(each) for each in check_origins({"train.b": begins}, {"a": base})]


@pytest.mark.parametrize("name", ["a", "a@100", "a@300", "a@best", "a@7", "here/state@7"])
def test_checkpoint_that_is_or_will_be_there(tmp_path: Path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    for state in ("here/state", "results/train/a/state"):
        Path(state, "checkpoints/7").mkdir(parents=True)
    assert problems(make_training(**BASE, validate_every=50), name) == []


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
    (found,) = problems(make_training(**BASE), name)
    assert f"train.b.from: {problem}" in found and "[JW315]" in found
