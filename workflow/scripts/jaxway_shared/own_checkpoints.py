"""Checkpoints of a program that keeps its own: a pattern of their names tells their steps.

`runs/checkpoint-{step}/trainer_state.json`, below the training's state: ``{step}`` stands for the
step, ``*`` for anything but a slash. What it names is there once a checkpoint is complete.
"""

import glob
import re
from pathlib import Path

STEP = "{step}"


def problem(pattern: str) -> str | None:
    """What is wrong with a pattern; None, nothing."""
    if pattern.count(STEP) != 1:
        return f"must have {STEP} once, for a checkpoint's step, as in checkpoint-{STEP}"
    if pattern.startswith("/") or ".." in Path(pattern).parts:
        return "must be below JAXWAY_STATE, so without a slash at its beginning and without .."
    return None


def find(state: Path, pattern: str) -> dict[int, Path]:
    """The complete checkpoints in a state, by their steps."""
    parts = re.split(r"(\{step\}|\*)", pattern)
    names = {STEP: r"(\d+)", "*": "[^/]*"}
    regex = "".join(names.get(part) or re.escape(part) for part in parts)
    pieces = "".join("*" if part in names else glob.escape(part) for part in parts)
    found = (
        (re.fullmatch(regex, str(path.relative_to(state))), path) for path in state.glob(pieces)
    )
    return {int(match[1]): path for match, path in found if match}


def newest(state: Path, pattern: str) -> int:
    """Step of the newest complete checkpoint; 0, there is none."""
    return max(find(state, pattern), default=0)
