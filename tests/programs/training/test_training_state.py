"""What a program in a job writes into a training's state."""

import argparse

import pytest
from jaxway_job import training_state
from jaxway_shared.errors import UserError
from jaxway_shared.identity import Identity
from jaxway_shared.training import TrainingState

NEW = Identity({"steps": 10}, None, {}, "")


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(state=tmp_path / "state", states=None)


def test_full_disk_at_a_line_of_metrics_is_the_error(args):
    sentence = r"metrics.jsonl cannot be written: No space left .*\[JW384\]"
    args.state.mkdir()
    (args.state / "metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(SystemExit, match=sentence),
        training_state.locked_state(args, NEW) as folder,
    ):
        training_state.append_metrics(folder, {"step": 1})
    error = TrainingState.read(args.state).error
    assert error is not None and "metrics.jsonl cannot be written" in error


def test_file_of_another_version_is_the_error(args):
    with (
        pytest.raises(SystemExit, match=r"not of this version \[JW001\]"),
        training_state.locked_state(args, NEW),
    ):
        raise UserError("JW001", "not of this version")
    assert "[JW001]" in (TrainingState.read(args.state).error or "")


def test_error_is_of_the_last_job_only(args):
    with pytest.raises(SystemExit), training_state.locked_state(args, NEW):
        raise SystemExit("train.py: no")
    with training_state.locked_state(args, NEW) as folder:
        assert TrainingState.read(folder).error is None


def test_exit_code_is_no_error(args):
    with pytest.raises(SystemExit), training_state.locked_state(args, NEW):
        training_state.exit_for_resubmission("time limit approaching: checkpoint saved")
    assert TrainingState.read(args.state).error is None


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path):
    lines = ['{"step": 1, "note": "x"}\n', '{"step": 2}\n', '{"step": 3}\n']
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 4')
    training_state.drop_metrics_after(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])
