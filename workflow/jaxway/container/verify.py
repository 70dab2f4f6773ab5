"""Check that a container is the file that pull made: by its size and time, then by its hash.

Runs on the host, before jobs are queued.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from jaxway_shared.records import same_image


def record_of(sif: Path) -> Path:
    """Where pull writes what it knows about a SIF."""
    return sif.with_name(f"{sif.name}.json")


def digest_of(sif: Path) -> Path:
    """Where pull writes what reruns depend on: the image's digest, or the SIF's hash."""
    return sif.with_name(f"{sif.name}.digest")


def sha256(file: Path) -> str:
    """Hexadecimal hash of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def measures(sif: Path) -> dict[str, Any]:
    """What a record holds to know the file again."""
    status = sif.stat()
    return {"sha256": sha256(sif), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def problem(sif: Path, full: bool, image: str = "") -> str:
    """Why the SIF cannot be trusted or is not of ``image``, as a sentence; empty when all is well.

    The hash is computed when ``full`` is asked for or the file's time is not the recorded one.
    """
    again = f"remove it (`rm {sif}`), and the next run makes it again"
    try:
        status = sif.stat()
        record: dict[str, Any] = json.loads(record_of(sif).read_text())
        bytes_, mtime_ns, hash_ = (record[key] for key in ("bytes", "mtime_ns", "sha256"))
        if status.st_size != bytes_:
            return f"{sif} has {status.st_size} bytes, but was made with {bytes_}: {again}"
        if (full or status.st_mtime_ns != mtime_ns) and sha256(sif) != hash_:
            return f"{sif} has changed since it was made, its sha256 is another: {again}"
        if image and not same_image(image, record):
            return (
                f"{sif} is {record['image']}, not {image}: `snakemake pull --forcerun pull` (with "
                "your --profile and --configfile) puts that in its place for all who share it; or "
                "name a place of your own as `sif` in the site's site.yaml"
            )
    except PermissionError as error:
        return f"{error.filename} cannot be read by you: ask its owner"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{sif} cannot be compared with its record ({error}): {again}"
    return ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sif", type=Path, required=True, help="file that pull made")
    arguments.add_argument("--image", default="", help="image that it must have been made from")
    arguments.add_argument("--full", action="store_true", help="compute its hash in any case")
    args = arguments.parse_args()
    if found := problem(args.sif, args.full, args.image):
        sys.exit(f"verify_container: {found}")
    record = json.loads(record_of(args.sif).read_text())
    print(f"{args.sif} is what was made on {record.get('date')} from {record['image']}")
