"""Compare a container with its record: by its size and time, then by its hash."""

import argparse
import hashlib
from pathlib import Path
from typing import TypedDict

from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError

from jaxway.config.containers import record_path, target


class Fingerprint(TypedDict):
    """What a SIF is recognised by."""

    sha256: str
    bytes: int
    mtime_ns: int


def sha256(file: Path) -> str:
    """Hexadecimal hash of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(sif: Path) -> Fingerprint:
    status = sif.stat()
    return {"sha256": sha256(sif), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def read_record(container: Path) -> ContainerRecord | None:
    """The record of a container; None where there is none that this version can read."""
    try:
        return ContainerRecord.read(record_path(container))
    except (OSError, UserError):
        return None


def recorded_image(sif: Path, image: str) -> str:
    """Name by which an image was pulled: pinning the one that is there is no change."""
    record = read_record(sif)
    return record.image if record and record.same_image(image) else image


def find_problem(
    sif: Path, full: bool, image: str = "", again: str = "the next run makes it again"
) -> UserError | None:
    """Why the SIF cannot be trusted or is not of ``image``; None when all is well.

    The hash is computed when ``full`` is asked for or the file's time is not the recorded one.
    ``again``: how one that was removed is made.
    """
    remedy = f"remove it (`rm {target(sif)}`), and {again}"
    try:
        status, record = sif.stat(), ContainerRecord.read(record_path(sif))
        if status.st_size != record.bytes:
            sentence = f"{sif} has {status.st_size} bytes, but {record.bytes} when it was made"
            return UserError("JW140", f"{sentence}: {remedy}")
        if (full or status.st_mtime_ns != record.mtime_ns) and sha256(sif) != record.sha256:
            return UserError("JW140", f"{sif} has changed since it was made (sha256): {remedy}")
    except PermissionError as error:
        return unreadable(Path(error.filename))
    except OSError as error:
        return UserError("JW140", f"{error.filename}: {error.strerror}; {remedy}")
    except UserError as error:
        return error
    if image and not record.same_image(image):
        return UserError(
            "JW141",
            f"{sif} leads to {record.image}, not {image}: run `snakemake pull --forcerun pull` "
            "(with your --profile and --configfile)",
        )
    return None


def find_problem_of_own(sif: str) -> UserError | None:
    """The same of a container that a benchmark names."""
    return find_problem(target(Path(sif)), full=False, again="pull it again (`jaxway pull`)")


def exists(path: Path) -> bool:
    """Whether there is such a file; a UserError where this user may not know."""
    try:
        return path.exists()
    except PermissionError:
        raise unreadable(path) from None


def unreadable(path: Path) -> UserError:
    """What to say of a file or folder that is another user's alone."""
    return UserError(
        "JW142",
        f"you may not read {path}: ask its owner, or set `sif` in the site's site.yaml to a path "
        "of your own",
    )


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sif", type=Path, required=True, help="file that pull made")
    parser.add_argument("--image", default="", help="image that it must have been made from")
    parser.add_argument("--full", action="store_true", help="compute its hash in any case")


def run(args: argparse.Namespace) -> None:
    if problem := find_problem(args.sif, args.full, args.image):
        raise problem
    record = ContainerRecord.read(record_path(args.sif))
    print(f"{args.sif} is as it was made on {record.date} from {record.image}")
