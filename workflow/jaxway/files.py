"""What commands on the login node share: progress lines, locks, whole files, and a clean end."""

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROGRESS_INTERVAL_S = 10
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a command cleans up after these


def block_signals() -> None:
    """Let signals wait: one that comes while a program starts would leave it running."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock_signals() -> None:
    """Let signals come; also in the program, which would inherit that they wait."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def log(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


@contextlib.contextmanager
def exclusive_lock(target: Path) -> Iterator[None]:
    """Wait until no other process, of whatever user and node, makes ``target``; lock others out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(f"{target.name}.lock")
    with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "w") as lock:
        with contextlib.suppress(PermissionError):
            file.chmod(0o666)  # whoever may write into the folder can wait here
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{target} is locked by another process that makes it: waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def atomic_replace(texts: dict[Path, str], ready: dict[Path, Path] | None = None) -> None:
    """Put files in place, all or none: ``texts`` to write, and ``ready`` ones to rename.

    Nobody ever sees half of a file.
    """
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
    """Delete files and folders; unpacked images hold read-only folders."""
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    subprocess.run(["chmod", "-R", "u+rwX", *folders], stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", *paths], stderr=subprocess.DEVNULL)
