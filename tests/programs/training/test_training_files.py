"""What the login node reads of a training's state and results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import results
from example_records import data_record
from jaxway_shared import training
from jaxway_shared.errors import UserError
from jaxway_shared.training import (
    LockOwner,
    MetricsLine,
    ModelSummary,
    ProgramSummary,
    Segment,
    Segments,
    TrainingState,
)

PROVENANCE = replace(results.PROVENANCE, job="42", arguments={"steps": 20})
SEGMENTS = (
    Segment(1, 10, 60.5, PROVENANCE, {"imports": 1.5}, 0.25),
    Segment(11, 20, 30.0, PROVENANCE),
)
MODEL = ModelSummary(
    program="train",
    steps=20,
    seconds=90.5,
    tokens_per_second=1e4,
    provenance=PROVENANCE,
    segments=SEGMENTS,
    parameters=10,
    flops_per_token=60,
    data=data_record(),
    train_nats_per_token=1.4,
    validation_nats_per_token=1.5,
    train_bits_per_byte=2.0,
    validation_bits_per_byte=2.1,
    unigram_bits_per_byte=4.5,
    gzip_bits_per_byte=3.0,
    mfu=None,
    mfu_causal=None,
    sample=None,
)
PROGRAM = ProgramSummary(
    program="command",
    steps=None,
    seconds=90.5,
    tokens_per_second=None,
    provenance=PROVENANCE,
    segments=SEGMENTS,
    command=("python3", "x.py"),
    loss=None,
)


@pytest.mark.parametrize("summary", [MODEL, PROGRAM])
def test_summary_is_read_as_written(tmp_path: Path, summary: ModelSummary | ProgramSummary) -> None:
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(summary.to_json()))
    assert training.read_summary(file) == summary


def test_segments_are_read_as_written(tmp_path: Path) -> None:
    assert training.read_segments(tmp_path) == ()
    (tmp_path / "segments.json").write_text(json.dumps(Segments(SEGMENTS).to_json()))
    assert training.read_segments(tmp_path) == SEGMENTS
    (tmp_path / "segments.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match="list of segments of schema version 1"):
        training.read_segments(tmp_path)


def test_new_state() -> None:
    assert TrainingState.read(Path("/nowhere")) == TrainingState(Path("/nowhere"), None, None)


@pytest.mark.parametrize(
    ("text", "step"), [("120\n", 120), ("120", 120), ("", None), ("-1", None), ("1.5", None)]
)
def test_last_checkpoint_step(tmp_path: Path, text: str, step: int | None) -> None:
    (tmp_path / "last_checkpoint_step").write_text(text)
    assert TrainingState.read(tmp_path).last_checkpoint_step == step


@pytest.mark.parametrize(
    ("text", "error"),
    [("x.py: no y [JW300]\n", "x.py: no y [JW300]"), ("", "it gave up, and its reason could not")],
)
def test_error(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "error").write_text(text)
    assert (TrainingState.read(tmp_path).error or "").startswith(error)


def test_lock_owner() -> None:
    owner = LockOwner("jrc0101", 7, "42")
    assert LockOwner.parse(f"{owner}\n") == owner
    for text in ("", "host jrc0101, process x, job 42", "host jrc0101"):
        assert LockOwner.parse(text) is None


def test_state_is_found_by_its_link(tmp_path: Path) -> None:
    link, folder = tmp_path / "state", tmp_path / "small-0123abcd"
    assert TrainingState.find(link) is None
    link.symlink_to(folder)
    assert TrainingState.find(link) is None  # deleted to start over
    folder.mkdir()
    assert TrainingState.find(link) == TrainingState(folder, None, None)


def test_metrics_without_the_line_that_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert training.read_metrics(file) == []
    file.write_text('{"step": 1, "loss": 2.5, "mfu": null, "note": "x"}\n{"step": 2, "lo')
    assert training.read_metrics(file) == [MetricsLine(1, {"step": 1, "loss": 2.5})]


@pytest.mark.parametrize(
    "line", ['{"loss": 1}', '{"step": "1"}', '{"step": true}', "[1]", "loss 1"]
)
def test_line_that_is_no_metrics(line: str) -> None:
    with pytest.raises(ValueError, match=r"step|Expecting"):
        MetricsLine.parse(line)


def test_best_step_is_the_first_with_the_least_loss() -> None:
    losses = {10: 2.0, 20: 1.5, 30: 1.5, 40: 1.75}
    lines = [MetricsLine(step, {"validation_loss": loss}) for step, loss in losses.items()]
    assert training.best_step([MetricsLine(5, {"loss": 1.0}), *lines]) == 20
    assert training.best_step([MetricsLine(5, {"loss": 1.0})]) is None
