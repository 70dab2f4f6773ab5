"""One run in a folder at a time, and whether there is one."""

import os
import subprocess
import sys
import threading
import time

import pytest
from jaxway import run_lock
from jaxway_shared.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jaxway/run.lock"


def test_second_run_is_refused_and_names_the_first(path, monkeypatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0)
    with (
        run_lock.acquire(path),
        pytest.raises(UserError, match=f"this folder: process {os.getpid()} on"),
    ):
        run_lock.acquire(path)


def test_lock_ends_with_its_owner_however_that_ends(path) -> None:
    code = "import pathlib, os; from jaxway import run_lock\n"
    code += f"lock = run_lock.acquire(pathlib.Path({str(path)!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert run_lock.started(path) is None
    run_lock.acquire(path).close()


def test_start_of_a_run_is_known_while_it_goes_on(path) -> None:
    assert run_lock.started(path) is None
    with run_lock.acquire(path):
        os.utime(path, (1000, 1000))
        assert run_lock.started(path) == 1000
    assert run_lock.started(path) is None


def test_somebody_who_looks_refuses_no_run(path) -> None:
    """started() holds the lock for a moment."""
    run_lock.acquire(path).close()
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            run_lock.started(path)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            run_lock.acquire(path).close()
    finally:
        end.set()
        watching.join()
