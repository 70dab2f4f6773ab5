"""Tokens of documents, in shards to train on and in one file to validate on.

In the order of the sha256 of their text, documents of all sources together go to validation until
it is full, the others to training. So no document is on both sides (the rest of the last one held
out is not used), but for one that has more text than validation is to have: its end is held out.
Equal documents count once, for the first source that has them. Where there is a source to validate
on, it is its documents that are not trained on, as far as they are used.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import DataOptions
from jaxway.data.corpus import Corpus, Document, cut_offset, read_document
from jaxway.data.sources import ProgressReporter
from jaxway.data.tokenizer import Encoder, RoundTrip, Text, Tokens, encode, round_trip
from jaxway.files import log

SHARD_TOKENS = 2**28  # in a file of 256 MB to 1 GB


class Part(NamedTuple):
    """What is used of a document: its bytes from ``start`` to ``stop``."""

    document: Document
    start: int
    stop: int


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: documents, and how they become tokens. ``kept``: how many bytes of a
    document that is held out are trained on, by its digest."""

    options: DataOptions
    encoder: Encoder | None
    corpus: Corpus
    held_out: list[Part]
    kept: dict[bytes, int]

    def training(self) -> Iterator[Part]:
        """What is trained on, in order."""
        for document in self.corpus.documents():
            if stop := self.kept.get(document.digest, document.size):
                yield Part(document, 0, stop)

    @cached_property
    def end_of_text(self) -> int | None:
        """The token behind each document."""
        name = self.options.end_of_text
        if name is None:
            return None
        return self.encoder.token(name) if self.encoder else int(name)

    @cached_property
    def sha256(self) -> str:
        """Of all that the tokens depend on; digests stand for documents."""
        tokenizer = self.encoder.sha256 if self.encoder else self.options.tokenizer
        names = [name for name, _ in self.options.sources]
        settings = [data_record.SCHEMA_VERSION, tokenizer, SHARD_TOKENS, self.end_of_text, names]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for part in self.held_out:
            digest.update(part.document.digest + struct.pack("<QQ", part.start, part.stop))
        for document, source, _ in self.corpus.entries():
            digest.update(document + struct.pack("<H", source))
        return digest.hexdigest()


def hold_out(documents: Iterable[Document], wanted: int) -> tuple[list[Part], int]:
    """The first documents, with so many bytes in all; and how many bytes are missing.

    Of a document that has more than wanted, this is the end.
    """
    parts, missing = list[Part](), wanted
    for document in documents:
        if document.size > wanted:
            start = cut_offset(document, document.size - missing)
            return [*parts, Part(document, start, document.size)], 0
        parts.append(Part(document, 0, min(missing, document.size)))
        missing -= parts[-1].stop
        if not missing:
            break
    return parts, missing


def check_rest(data: Preparation, missing: int) -> None:
    """Raise a sentence where too little is held out or left."""
    sizes = [data.kept.get(digest, size) for digest, _, size in data.corpus.entries()]
    wanted, rest = data.options.validation_bytes, sum(sizes)
    if rest and (data.options.validation or not missing):
        return
    raise UserError(
        "JW181",
        f"data: too short: the {len(sizes)} different documents leave {rest} bytes for training "
        f"after {wanted - missing} for validation; lower validation_bytes ({wanted}) or add text",
    )


def read_part(part: Part, progress: ProgressReporter) -> Iterator[bytes]:
    """Content of a part, in chunks."""
    position = 0
    for chunk in read_document(part.document, progress):
        start, stop = (max(0, bound - position) for bound in (part.start, part.stop))
        if piece := chunk[start:stop]:
            yield piece
        position += len(chunk)


def read_validation(data: Preparation, progress: ProgressReporter) -> list[bytes]:
    """Held-out texts, without half a character for a tokenizer."""
    texts = []
    for part in data.held_out:
        text = b"".join(read_part(part, progress))
        if data.encoder and part.stop < part.document.size:
            text = text.decode(errors="ignore").encode()
        texts.append(text)
    return texts


def unigram_bits(counts_256: Tokens, text: Tokens) -> float:
    """Bits per byte of a text (uint8) coded by how often each byte occurs in the training text.

    A cross entropy, with one added to each count so that a byte new to training has a cost.
    """
    counts_256 = counts_256 + 1
    return float(np.mean(-np.log2(counts_256 / counts_256.sum())[text]))


def gzip_bits(text: bytes) -> float:
    """Bits per byte of a text after gzip -9."""
    return 8 * len(gzip.compress(text, 9)) / len(text)


def write_shards(
    folder: Path, sources: list[str], arrays: Iterable[tuple[int, Tokens]]
) -> list[list[int]]:
    """Write tokens to shards of their sources, and return how many are in each of each."""
    counts: list[list[int]] = [[] for _ in sources]
    with contextlib.ExitStack() as stack:
        files: dict[int, IO[bytes]] = {}
        for source, tokens in arrays:
            shards = counts[source]
            while len(tokens):
                if not shards or shards[-1] == SHARD_TOKENS:
                    if shards:
                        files[source].close()
                    path = folder / data_record.shard(len(shards), sources[source])
                    files[source] = stack.enter_context(path.open("wb"))
                    shards.append(0)
                part = tokens[: SHARD_TOKENS - shards[-1]]
                files[source].write(part.data)
                shards[-1] += len(part)
                tokens = tokens[len(part) :]
    return counts


def check_tokens(names: list[str], shards: list[list[int]], held_out: int) -> None:
    """Raise a sentence where a source, or what is held out, has no tokens."""
    for name, counts in zip(names, shards, strict=True):
        if not counts or not held_out:
            raise UserError(
                "JW181",
                f"data{name and f'.{name}'}: only {sum(counts)} tokens for training, "
                f"{held_out} for validation",
            )


def write(data: Preparation, folder: Path, final: Path) -> DataRecord:
    """Write all tokens and measure them; returns their record, which is not written yet.

    ``final`` is what the folder is called when it is whole.
    """
    vocabulary, dtype_name = 256, "uint8"
    if data.encoder:
        vocabulary = data.encoder.vocabulary
        dtype_name = "uint16" if vocabulary <= 2**16 else "uint32"  # uint8 stands for bytes
    dtype = np.dtype(dtype_name).newbyteorder("<")
    progress = ProgressReporter("writing", data.corpus.stored_bytes)

    texts = read_validation(data, progress)
    validation = b"".join(texts)
    held_out = [Text(0, [text]) for text in texts]
    arrays = [array for _, array in encode(held_out, data.encoder, dtype, data.end_of_text)]
    tokens = np.concatenate([np.empty(0, dtype), *arrays])
    (folder / data_record.VALIDATION).write_bytes(tokens.data)

    counts_256 = np.zeros(256, np.int64)

    def counted(part: Part) -> Iterator[bytes]:
        for chunk in read_part(part, progress):
            counts_256[:] += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
            yield chunk

    training = (Text(part.document.source, counted(part)) for part in data.training())
    names = [name for name, _ in data.options.sources]
    shards = write_shards(folder, names, encode(training, data.encoder, dtype, data.end_of_text))
    trip = (
        round_trip(held_out, data.encoder) if data.encoder else RoundTrip(len(validation), 0, True)
    )
    if not trip.lossless:
        log(f"Warning: {trip.loss()}")
    check_tokens(names, shards, trip.tokens)
    return DataRecord(
        documents=sum(1 for _ in data.corpus.entries()),
        tokenizer=data.options.tokenizer,
        tokenizer_sha256=data.encoder.sha256 if data.encoder else None,
        vocabulary=vocabulary,
        dtype=dtype_name,
        end_of_text=data.end_of_text,
        sources={name: len(counts) for name, counts in zip(names, shards, strict=True)},
        shards=tuple(itertools.chain(*shards)),
        header_bytes=0,
        train_tokens=sum(itertools.chain(*shards)),
        train_bytes=int(counts_256.sum()),
        validation_tokens=len(tokens),
        validation_bytes=len(validation),
        special_tokens=len(tokens) - trip.tokens,
        unknown_tokens=trip.unknown,
        lossless=trip.lossless,
        unigram_bits_per_byte=unigram_bits(counts_256, np.frombuffer(validation, np.uint8)),
        gzip_bits_per_byte=gzip_bits(validation),
        sha256=data.sha256,
        folder=str(final),
    )
