"""The shared file system: whether compute nodes see the environment, workflow and folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxway.config.schema import WORKFLOW
from jaxway.preflight.finding import Findings, failure, passed


def check_shared_fs(shared: Sequence[str]) -> Findings:
    """``shared``: the folders that compute nodes see; empty, where all are shared."""
    if not shared:
        return
    folders = {
        "Python's environment": sys.prefix,
        "the workflow": str(WORKFLOW),
        "this folder": ".",
    }
    resolved = {what: Path(folder).resolve() for what, folder in folders.items()}
    visible = [Path(folder).resolve() for folder in shared]
    hidden = [
        f"{what}, {folder}"
        for what, folder in resolved.items()
        if not any(folder.is_relative_to(each) for each in visible)
    ]
    for each in hidden:
        message = f"{each}, exists on this node only: move it to {' or '.join(shared)}"
        yield failure("JW514", message)
    if not hidden:
        yield passed("compute nodes see the environment, the workflow, this folder")
