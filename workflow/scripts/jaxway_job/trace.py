"""A trace of some steps by JAX's profiler, which Perfetto and XProf open."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jaxway_shared import training

from jaxway_job import runtime


class Trace:
    """Traces the devices of the first process in the steps that ``profile`` names, if it does.

    ``state``: the folder of the training's state.
    """

    def __init__(self, state: Path, profile: dict[str, int] | None) -> None:
        self.folder = state / training.TRACE
        first, steps = (profile["first"], profile["steps"]) if profile else (0, 0)
        self.steps = range(first, first + steps)
        self.running = False

    def is_edge(self, step: int) -> bool:
        """Whether the trace begins or ends after a step; nothing else is to run then."""
        return step + 1 == self.steps.start or step in self.steps[-1:]

    def begin(self, step: int) -> None:
        """Begin the trace if a step that is going to begin is its first."""
        if step in self.steps[:1] and runtime.first_process():
            with self.surviving():
                jax.profiler.start_trace(str(self.folder))
                self.running = True

    def end(self, step: int) -> None:
        """Write the trace if a step that has ended was its last."""
        if step in self.steps[-1:] and self.running:
            with self.surviving():
                self.running = False
                jax.profiler.stop_trace()

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """Go on with the training where a trace fails, as on a full disk."""
        try:
            yield
        except Exception as error:  # JAX has no type of its own for it
            print(f"no trace in {self.folder}: {runtime.first_line(error)}", flush=True)
