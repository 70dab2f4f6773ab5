"""Check that a container is the file that pull made: by its size and time, then by its hash.

Runs on the host, before jobs are queued.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any


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


def problem(sif: Path, full: bool) -> str:
    """Why the SIF cannot be trusted, as a sentence; empty when it can.

    The hash is computed when ``full`` is asked for or the file's time is not the recorded one.
    """
    again = f"remove it (`rm {sif}`), and the next run makes it again"
    try:
        status = sif.stat()
        record: dict[str, Any] = json.loads(record_of(sif).read_text())
        recorded = {key: record[key] for key in ("bytes", "mtime_ns", "sha256", "date", "image")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{sif} cannot be compared with its record ({error}): {again}"
    if status.st_size != recorded["bytes"]:
        return f"{sif} has {status.st_size} bytes, but was made with {recorded['bytes']}: {again}"
    unsure = full or status.st_mtime_ns != recorded["mtime_ns"]
    if unsure and sha256(sif) != recorded["sha256"]:
        return f"{sif} has changed since it was made, its sha256 is no longer the recorded: {again}"
    return ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sif", type=Path, required=True, help="file that pull made")
    arguments.add_argument("--full", action="store_true", help="compute its hash in any case")
    args = arguments.parse_args()
    if found := problem(args.sif, args.full):
        sys.exit(f"verify_container: {found}")
    record = json.loads(record_of(args.sif).read_text())
    print(f"{args.sif} is what was made on {record['date']} from {record['image']}")


if __name__ == "__main__":
    main()
