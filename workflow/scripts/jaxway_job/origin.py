"""Where a training begins that does not begin with random parameters: at another one's checkpoint.

That is what its option ``from`` names, or the state of a training that differs in ``steps`` alone.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jaxway_shared import identity, training
from jaxway_shared.errors import UserError, fail
from jaxway_shared.identity import Identity
from jaxway_shared.training import CHECKPOINTS, TRACE, MetricsLine, Segments, TrainingState

from jaxway_job import runtime


@dataclass(frozen=True)
class Origin:
    """The checkpoint that the option ``from`` names."""

    state: Path
    step: int
    identity: str  # sha256 of its training's

    def __str__(self) -> str:
        """As the option may name it, wherever that is read."""
        return f"{self.state}@{self.step}"

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint. Ends the program where it is gone."""
        folder = self.state / CHECKPOINTS / str(self.step)
        if not folder.is_dir():
            fail("JW315", f"from: {self} is not there; {what_is_there(self.state)}")
        return folder


def find(name: str, link: Path) -> Origin:
    """What ``<run>``, ``<run>@<step>`` or ``<run>@best`` names; a run with a / is a state's folder.

    ``link``: to the state of the training that begins there. Ends the program if there is no such
    training, or it is not finished and no step is named.
    """
    run, word = training.split_origin(name)
    state = Path(run) if "/" in run else link.parent.with_name(run) / link.name
    try:
        digest = Identity.read(state).digest
    except OSError as error:
        fail("JW315", f"from: no training in {state}: {error.strerror}")
    except UserError as error:
        fail(error.code, f"from: {error}")
    if word == "best":
        step = training.best_step(training.read_metrics(state / training.METRICS))
    elif word:
        step = int(word)
    else:
        finished = (state / training.SUMMARY).exists()
        step = TrainingState.read(state).last_checkpoint_step if finished else None
    if step is None:
        problem = "has no validation" if word else "is not finished"
        fail("JW315", f"from: {run} {problem}, so write {run}@<step>; {what_is_there(state)}")
    return Origin(state.resolve(), step, digest)


def what_is_there(state: Path) -> str:
    """The checkpoints of a state, in a sentence."""
    steps = training.checkpoint_steps(state)
    return f"checkpoints of steps {', '.join(map(str, steps))}" if steps else "no checkpoints"


def extend(own: Path, this: Identity) -> int:
    """Have a new state go on from that of a training that differs in ``steps`` alone, if it can.

    Returns the step from which it goes on; 0, there is no such training. Which one is of no
    consequence, since all have taken the same steps.
    """
    wanted = this.options["steps"]
    found = []
    for folder, other in identity.states_beside(own):
        if replace(other, options={**other.options, "steps": wanted}) == this:
            steps = [step for step in training.checkpoint_steps(folder) if step <= wanted]
            if steps and not TrainingState.read(folder).writer():  # which deletes checkpoints
                found.append((max(steps), folder))
    step, state = max(found, default=(0, own))
    if step:
        with runtime.explain_write(own):
            copy_until(step, state, own, this)
        print(f"going on from step {step} of {state}", flush=True)
    return step


def copy_until(step: int, other: Path, own: Path, this: Identity) -> None:
    """Give a new state what another one has of the steps until one, as if it had taken them."""
    lines = training.metrics_text(other / training.METRICS)
    intervals = this.options["log_every"], this.options["validate_every"]
    kept = [
        text
        for text in lines
        # The other's last step may have a line where this training has none.
        if (line := MetricsLine.parse(text)).step < step
        or (line.step == step and any(training.is_due(step, every) for every in intervals))
    ]
    (own / training.METRICS).write_text("".join(kept))
    segments = [each for each in training.read_segments(other) if each.first_step <= step]
    (own / training.SEGMENTS).write_text(json.dumps(Segments(tuple(segments)).to_json()) + "\n")
    with suppress(FileNotFoundError):  # there is none
        shutil.copytree(other / TRACE, own / TRACE, dirs_exist_ok=True)
    part = own / f"{CHECKPOINTS}.part"
    shutil.rmtree(part, ignore_errors=True)
    for name in (str(each) for each in training.checkpoint_steps(other) if each <= step):
        shutil.copytree(other / CHECKPOINTS / name, part / name, copy_function=link_or_copy)
    part.replace(own / CHECKPOINTS)


def link_or_copy(file: str, copy: str) -> None:
    """Give a file, which is never written again, another name, or copy it if that cannot be."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy)
