"""One run in a folder at a time, and Ctrl-C once."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jaxway import run_lock
from jaxway_shared.errors import UserError

HOLDER = """
import time
from jaxway import run_lock
lock = run_lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder."""
    monkeypatch.chdir(tmp_path)


def test_second_run_is_refused_until_the_first_is_killed() -> None:
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"in this folder: process {holder.pid} on "):
            run_lock.acquire()
        holder.kill()
    run_lock.acquire().close()


def test_full_disk_leaves_the_lock() -> None:
    run_lock.LOCK_FILE.parent.mkdir(parents=True)
    run_lock.LOCK_FILE.symlink_to("/dev/full")
    with run_lock.acquire():
        assert run_lock.started()


def test_start_of_the_run_that_holds_the_lock() -> None:
    assert run_lock.started() is None
    began = time.time()
    with run_lock.acquire():
        assert began - 1 < (run_lock.started() or 0) < time.time() + 1
    assert run_lock.started() is None


def test_file_system_without_locks_is_one_sentence(monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    with pytest.raises(SystemExit, match=r"cannot be locked here: No locks available \[JW213\]"):
        run_lock.hold()
    with pytest.raises(UserError, match="cannot be locked here"):
        run_lock.started()


SECOND_CTRL_C = """
import os, signal, sys
from jaxway import interrupt
interrupt.install()
if "tee" in sys.argv:  # it has ended
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 2)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
"""


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [("read", "Ending already [JW201]"), ("tee", "")],
)
def test_second_ctrl_c_is_a_sentence(stderr: str, sentence: str) -> None:
    words = [sys.executable, "-c", SECOND_CTRL_C, stderr]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "went on\n", sentence)
