"""The folder of a run, and its lock."""

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import run_folder
from jaxway import run_lock


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a squeue, in which the test is."""
    run_folder.make_squeue(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    return tmp_path


@pytest.fixture
def lock(folder: Path) -> Iterator[TextIO]:
    """That of a run in the folder, which ends when it is closed."""
    with run_lock.acquire() as file:
        yield file
