"""Records that both sides read: of a container, and of prepared data.

Needs numpy only.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

RECORD = "data.json"
VALIDATION = "validation.bin"
Record = dict[str, Any]


def same_image(image: str, record: dict[str, Any]) -> bool:
    """Whether a container's record is of this image, by its name or the digest that pins it."""
    record = record.get("base", record)  # with packages on top the digest is another
    return image == record["image"] or image.endswith(f"@{record['digest']}")


def shard(number: int) -> str:
    """File name of a shard."""
    return f"train-{number:05}.bin"


def token_type(record: Record) -> np.dtype:
    """Type of a token in the files."""
    return np.dtype(record["dtype"]).newbyteorder("<")


def problem(record: Record) -> str | None:
    """What keeps the files from being those of the record; None if nothing does."""
    folder = Path(record["folder"])
    tokens = {shard(number): count for number, count in enumerate(record["shards"])}
    tokens[VALIDATION] = record["validation_tokens"]
    try:
        if json.loads((folder / RECORD).read_text()) != record:
            return f"{folder / RECORD} has changed"
        for name, count in tokens.items():
            if (folder / name).stat().st_size != count * token_type(record).itemsize:
                return f"{folder / name} has changed"
    except OSError as error:
        return f"{error.filename} is gone ({error.strerror})"
    except ValueError as error:
        return f"{folder / RECORD} is damaged ({error})"
    return None


def prepared(file: Path) -> Record | None:
    """Record that a file holds; None, if it holds none, or its data are not as it says."""
    try:
        record = json.loads(file.read_text())
        return None if problem(record) else record
    except (OSError, ValueError, KeyError, TypeError):
        return None
