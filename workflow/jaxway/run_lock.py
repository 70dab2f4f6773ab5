"""One run in a folder at a time: a lock that ends with its owner, however that ends.

Snakemake's own lock is a file, which stays behind a Snakemake that was killed and refuses the next
one; so the profiles say `nolock: true`, and our executors hold this one.
"""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from jaxway_shared.errors import UserError

LOCK = Path(".snakemake/jaxway/run.lock")


def acquire(path: Path = LOCK) -> TextIO:
    """The lock, held until the file is closed. UserError while another run holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read() or "one that is just starting"
        file.close()
        raise UserError("JW200", f"another run goes on in this folder: {owner}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
