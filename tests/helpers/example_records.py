"""Records for tests: of a container, and of prepared data."""

import json
from pathlib import Path
from typing import Any

from jaxway.config.containers import record_path
from jaxway.container import verify
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.data_record import DataRecord

DIGEST = f"sha256:{12:064}"
NO_SIF: verify.Fingerprint = {"sha256": 64 * "a", "bytes": 1000, "mtime_ns": 1}


def container_record(image: str = "docker://h.org/a:tag", **fields: Any) -> ContainerRecord:
    whole: dict[str, Any] = {
        **{"digest": DIGEST, "apptainer": "1.4.5", "date": "2026-11-26T08:00:00Z"},
        **{"image": image, "labels": {}, "layers": ()},
        **NO_SIF,
    }
    return ContainerRecord(**whole | fields)


def write_container_record(sif: Path, image: str) -> None:
    """Leave the record that pull would leave with a SIF that is there."""
    record = container_record(image, **verify.fingerprint(sif))
    record_path(sif).write_text(json.dumps(record.to_json()))


def data_record(**fields: Any) -> DataRecord:
    """Of one shard with 50 tokens, and 5 to validate."""
    whole: dict[str, Any] = {
        **{
            "documents": 2,
            "end_of_text": None,
            "header_bytes": 0,
            "sources": {"": 1},
            "tokenizer": "bytes",
            "tokenizer_sha256": None,
            "sha256": 64 * "b",
        },
        **{"vocabulary": 256, "dtype": "uint8", "shards": (50,), "folder": "/data"},
        **{"train_tokens": 50, "train_bytes": 50, "validation_tokens": 5, "validation_bytes": 5},
        **{"special_tokens": 0, "unknown_tokens": 0, "lossless": True},
        **{"unigram_bits_per_byte": 4.5, "gzip_bits_per_byte": 2.5},
    }
    whole |= fields
    return DataRecord(**{**whole, "sources": fields.get("sources", {"": len(whole["shards"])})})
