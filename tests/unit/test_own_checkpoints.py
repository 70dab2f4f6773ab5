import pytest
from jaxway_shared import own_checkpoints


@pytest.mark.parametrize(
    ("pattern", "files", "expected"),
    [
        ("checkpoint-{step}", ["checkpoint-5", "checkpoint-10", "checkpoint-best"], {5, 10}),
        ("run/{step}/done", ["run/5/done", "run/10/part", "run/x/15/done"], {5}),
        ("*/epoch=*-step={step}.ckpt", ["v0/epoch=3-step=40.ckpt", "v0/last.ckpt"], {40}),
        ("a[1]/{step}", ["a[1]/3", "a1/4"], {3}),
        ("{step}.weights.h5", ["3.weights.h5", "4-weights-h5", "5.weights.h5.tmp"], {3}),
    ],
)
def test_steps_of_complete_checkpoints(tmp_path, pattern, files, expected):
    for name in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert own_checkpoints.problem(pattern) is None
    assert {*own_checkpoints.find(tmp_path, pattern)} == expected
    assert own_checkpoints.newest(tmp_path, pattern) == max(expected)
    assert own_checkpoints.newest(tmp_path / "none", pattern) == 0


@pytest.mark.parametrize("pattern", ["", "checkpoint-*", "{step}/{step}", "/{step}", "../{step}"])
def test_patterns_that_cannot_be_used(pattern):
    assert own_checkpoints.problem(pattern)
