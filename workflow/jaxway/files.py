"""What programs on the host share: what they say, their locks, and that they leave nothing half."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

TELL = 10  # seconds between two signs of life
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # those that end a program tidily


def fail(sentence: str) -> NoReturn:
    """End the program with exit code 1 and one sentence on standard error."""
    sys.exit(f"{Path(sys.argv[0]).name}: {sentence}")


def say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until nobody else, of whatever user and node, makes this; keep others out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f"{target.name}.lock")
    with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "w") as lock:
        with contextlib.suppress(PermissionError):
            file.chmod(0o666)  # whoever may write into the folder can wait here
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{target} is being made already: waiting for the end of that")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def appear(texts: dict[Path, str], ready: dict[Path, Path] | None = None) -> None:
    """Have files appear at their places, all or none: those to write and those that are ready."""
    parts = dict(ready or {})
    try:
        for file, text in texts.items():
            parts[file] = file.with_name(f".{file.name}.part")
            parts[file].write_text(text)
        for file, part in parts.items():
            # Whoever may read the folder may read what is in it, whatever this user's umask.
            part.chmod(part.stat().st_mode | (file.parent.stat().st_mode & 0o044))
            part.replace(file)
    except OSError:
        remove(*parts.values())
        raise


def remove(*paths: Path) -> None:
    """Delete files and folders; unpacked images hold folders that nobody may write to."""
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    subprocess.run(["chmod", "-R", "u+rwX", *folders], stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", *paths], stderr=subprocess.DEVNULL)


def run(program: Callable[[], None]) -> None:
    """Run a program that cleans up also when a signal ends it, and fails with one sentence."""

    def end(number: int, _: object) -> NoReturn:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one does not stop the cleaning up
        fail(f"ended by {signal.Signals(number).name}")

    for number in SIGNALS:
        signal.signal(number, end)
    try:
        program()
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
