"""Where a pull keeps layers and unpacked files: a node's own disk, if there is space."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from jaxway_shared.errors import UserError

from jaxway.files import log

UNPACK_RATIO = 3  # bytes that a byte of a layer takes without compression, roughly
MAX_INODES = 100_000  # files of a large image, roughly


class Space(NamedTuple):
    """What a file system gives or a pull takes."""

    bytes: int
    inodes: int

    def exceeds(self, needed: "Space") -> bool:
        """Whether there is more of both."""
        return self.bytes > needed.bytes and self.inodes > needed.inodes


def candidates(sif: Path, *tmpdirs: Path | None) -> list[Path]:
    """Folders that could hold the layers and unpacked files of this user's pulls to this SIF."""
    name = f"jaxway-{os.getuid()}-{hashlib.sha256(str(sif).encode()).hexdigest()[:8]}"
    variables = map(os.environ.get, ("APPTAINER_TMPDIR", "TMPDIR"))
    parents = [*tmpdirs, *variables, "/tmp", "/var/tmp", sif.parent]
    return [Path(parent, name) for parent in dict.fromkeys(map(str, filter(None, parents)))]


def free_space(work: Path) -> Space:
    """What such a folder can have, with the bytes it has already."""
    status = os.statvfs(work.parent)
    present = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    return Space(status.f_bavail * status.f_frsize + present, status.f_favail)


def space_needed(size: int) -> Space:
    """What pulling layers of ``size`` bytes takes for a while, roughly.

    Layers as plain archives, their files, and these compressed, which is copied into the SIF.
    """
    return Space(size * (2 * UNPACK_RATIO + 1), MAX_INODES)


def choose(sif: Path, tmpdir: Path | None, needed: Space) -> Path:
    """The first candidate with space, made and open to this user alone; else beside the SIF."""
    *elsewhere, beside = candidates(sif, tmpdir)
    for work in elsewhere[:1] if tmpdir else elsewhere:
        if not work.parent.is_dir():
            raise UserError(
                "JW131",
                f"{work.parent}, from `tmpdir` or APPTAINER_TMPDIR, is not an existing folder",
            )
        free = free_space(work)
        log(
            f"{work.parent}: {free.bytes / 1e9:,.1f} GB and {free.inodes:,} inodes free, about "
            f"{needed.bytes / 1e9:,.1f} GB and up to {needed.inodes:,} inodes required"
        )
        if tmpdir or free.exceeds(needed):
            break
    else:
        work = beside
        log(f"too little space on this machine's own disks: working in {work}")
    work.mkdir(mode=0o700, exist_ok=True)
    if work.is_symlink() or work.stat().st_uid != os.getuid():
        raise UserError(
            "JW131", f"{work} belongs to another user; set `tmpdir` in the configuration"
        )
    return work


def disk_full_hint(work: Path) -> str:
    return (
        "free some space or inodes there (your quota limits both), or set `tmpdir` in the "
        f"configuration to a folder with more than {work} has"
    )
