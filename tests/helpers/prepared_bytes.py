"""Prepared data as `jaxway prepare-data` leaves them, which does not run in a container."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxway_shared.data_record import RECORD, VALIDATION, DataRecord, shard

END = b"\0"  # of a document


def write(
    folder: Path, sources: Mapping[str, Sequence[bytes]], validation: Sequence[bytes]
) -> Path:
    """Leave documents of some sources, each a shard of bytes, and those to validate; the record."""
    trained = {name: END.join([*documents, b""]) for name, documents in sources.items()}
    held_out = END.join([*validation, b""])
    for name, content in trained.items():
        (folder / shard(0, name)).write_bytes(content)
    (folder / VALIDATION).write_bytes(held_out)
    counts = np.bincount(np.frombuffer(held_out, np.uint8))
    shares = counts[counts > 0] / len(held_out)
    shards = tuple(map(len, trained.values()))
    documents = sum(map(len, sources.values()))
    record = DataRecord(
        documents=documents + len(validation),
        tokenizer="bytes",
        tokenizer_sha256=None,
        vocabulary=256,
        dtype="uint8",
        end_of_text=END[0],
        sources=dict.fromkeys(sources, 1),
        shards=shards,
        header_bytes=0,
        train_tokens=sum(shards),
        train_bytes=sum(shards) - documents,
        validation_tokens=len(held_out),
        validation_bytes=len(held_out) - len(validation),
        special_tokens=len(validation),
        unknown_tokens=0,
        lossless=True,
        unigram_bits_per_byte=float(-np.sum(shares * np.log2(shares))),
        gzip_bits_per_byte=8 * len(gzip.compress(held_out)) / len(held_out),
        sha256=64 * "a",
        folder=str(folder),
    )
    (folder / RECORD).write_text(json.dumps(record.to_json()))
    return folder / RECORD
