"""Event files for TensorBoard hold each step of a training once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jaxway.monitor.event_files import EventFiles
from jaxway_shared.errors import UserError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a training of the run in this folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scratch/gpt-01234567"
    folder.mkdir(parents=True)
    Path("results/train/gpt").mkdir(parents=True)
    Path("results/train/gpt/state").symlink_to(folder)
    return folder


def log(state: Path, *steps: int, mode: str = "a") -> None:
    lines = [{"step": step, "loss": 100 - step, "mfu": None, "sample": [1]} for step in steps]
    with (state / "metrics.jsonl").open(mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def written(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard reads of the event files: step, name and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events: Any = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    names = events.Tags()["tensors"]
    return [
        (x.step, name, float(tensor_util.make_ndarray(x.tensor_proto)))
        for name in names
        for x in events.Tensors(name)
    ]


def test_each_step_is_written_once(state: Path, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    events = EventFiles(folder)
    events.update(["gpt", "none"])  # nothing is there yet
    log(state, 1, 2)
    with (state / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # it is being written
    events.update(["gpt"])
    assert written(folder / state.name) == [(1, "loss", 99), (2, "loss", 98)]
    with (state / "metrics.jsonl").open("a") as file:
        file.write('ss": 97}\nno line\n')
    log(state, 4)
    events.update(["gpt"])
    # A job was killed: another one has replaced the file, and takes steps again.
    (state / "metrics.jsonl").unlink()
    log(state, 1, 2, 3, 4, 5)
    events.update(["gpt"])
    EventFiles(folder).update(["gpt"])  # another process
    assert written(folder / state.name) == [(step, "loss", 100 - step) for step in range(1, 6)]
    assert "tensorflow" not in sys.modules


def test_without_tensorboard_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        EventFiles(Path("events"))
