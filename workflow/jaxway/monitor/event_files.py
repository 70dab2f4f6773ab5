"""Event files for TensorBoard of the metrics of a run's trainings, written by its own library."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError
from jaxway_shared.training import METRICS, MetricsLine, TrainingState

from jaxway.launch import state_link


class EventFiles:
    """Event files in ``folder``, one folder a training's state.

    Each step is written once: also where another one has written before, and where a training does
    steps again after a kill, which gives the same values.
    """

    def __init__(self, folder: Path) -> None:
        """UserError where TensorBoard is not installed."""
        self.folder = folder
        self.writers: dict[Path, Any] = {}
        self.last_steps: dict[Path, int] = {}
        self.read_bytes: dict[Path, tuple[int, int]] = {}  # inode and bytes that are read
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
            from tensorboard.summary import Writer
        except ImportError:
            raise UserError("JW556", "there is no TensorBoard: `pip install tensorboard`") from None
        self.writer_class, self.loader_class = Writer, EventFileLoader

    def update(self, trainings: Iterable[str]) -> None:
        """Write what is new of the trainings with these names."""
        for name in trainings:
            state = TrainingState.find(Path(state_link(name)))
            if state:
                self.update_state(state.folder)

    def update_state(self, state: Path) -> None:
        """Write what is new of one training."""
        lines = [line for line in self.new_lines(state) if line.step > self.last_step(state)]
        for line in lines:
            for name, number in line.numbers.items():
                if name != "step":
                    self.writer(state).add_scalar(name, number, line.step)
        if lines:
            self.last_steps[state] = lines[-1].step
            self.writer(state).flush()

    def new_lines(self, state: Path) -> list[MetricsLine]:
        """Lines of metrics that have not been read, or all if the file is another one."""
        try:
            with (state / METRICS).open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                before, offset = self.read_bytes.get(state, (inode, 0))
                file.seek(offset if before == inode else 0)
                text = file.read()
                end = text.rfind(b"\n") + 1  # the last line may be half there
                self.read_bytes[state] = inode, file.tell() - len(text) + end
        except OSError:
            return []
        lines = []
        for line in text[:end].decode(errors="replace").splitlines():
            with suppress(ValueError):  # of a program of the user's own, whose job will say so
                lines.append(MetricsLine.parse(line))
        return lines

    def last_step(self, state: Path) -> int:
        """The last step that is in an event file."""
        if state not in self.last_steps:
            files = (self.folder / state.name).glob("events.*")
            steps = [event.step for file in files for event in self.loader_class(str(file)).Load()]
            self.last_steps[state] = max(steps, default=0)
        return self.last_steps[state]

    def writer(self, state: Path) -> Any:
        """What writes the event file of a training."""
        if state not in self.writers:
            self.writers[state] = self.writer_class(str(self.folder / state.name))
        return self.writers[state]
