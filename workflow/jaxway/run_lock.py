"""One run in a folder at a time: a lock that ends with its owner, however that ends.

Snakemake's own lock is a file, which stays behind a Snakemake that was killed and refuses the next
one; so the profiles say `nolock: true`, and our executors hold this one.
"""

import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from jaxway_shared.errors import UserError

LOCK_FILE = Path(".snakemake/jaxway/run.lock")
WAIT_S = 0.5  # started() takes the lock for a moment


def hold() -> TextIO:
    """The lock for as long as this process lives. Ends it while another run holds the lock."""
    try:
        return acquire()
    except UserError as error:
        sys.exit(error.line())


def acquire() -> TextIO:
    """The lock, held until the file is closed. UserError while another run holds it."""
    LOCK_FILE.parent.mkdir(parents=True, exist_ok=True)
    file = open(LOCK_FILE, "a+")  # noqa: SIM115
    deadline = time.monotonic() + WAIT_S
    try:
        while not try_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                owner = file.read() or "its process is not known"
                raise UserError("JW200", f"another run is running in this folder: {owner}")
            time.sleep(0.01)
    except UserError:
        file.close()
        raise
    with contextlib.suppress(OSError):  # a full disk: the lock is held without its owner's name
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def started() -> float | None:
    """When the run that holds the lock took it; None, where none does."""
    try:
        with LOCK_FILE.open() as file:
            return None if try_lock(file, fcntl.LOCK_SH) else os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def try_lock(file: TextIO, kind: int) -> bool:
    """Whether the lock could be taken."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError("JW213", f"{LOCK_FILE} cannot be locked here: {error.strerror}") from None
    return True
