"""Turn text into shards of tokens, once, for all trainings that read it.

Files in a folder of ``--store`` that their content names: ``train-00000.bin`` and so on, of
SHARD_TOKENS each but for the last; ``validation.bin``; and ``data.json``, the record, of which
``--out`` is a copy. The folder appears whole, and one that is there is left as it is.

In the order of the sha256 of their text, as good as random and the same on every machine, files go
to validation until it is full, the others to training. So no file is on both sides (the rest of the
last one held out is not used), but for one that has more text than validation is to have: its end
is held out. Files of equal text count once.
"""

import argparse
import contextlib
import errno
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import BYTE_TOKENIZERS, RAW
from jaxway.data.sources import ProgressReporter, Source, cut_offset, read_verified, scan_files
from jaxway.data.tokenizer import Encoder, RoundTrip, Tokens, encode, load_tokenizer, round_trip
from jaxway.files import atomic_replace, exclusive_lock, log, remove

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "default": ["python"],
        "description": "text to learn: folders, globs, or python for Python's standard library",
    },
    "validation_bytes": {
        "type": "integer",
        "minimum": 1,
        "default": 131072,
        "description": "held-out text, in bytes: of whole files, or the end of a larger one",
    },
    "tokenizer": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "bytes",
        "description": "bytes (of text), raw (bytes of any file), or the path of a tokenizer.json",
    },
}
SHARD_TOKENS = 2**28  # in a file of 256 MB to 1 GB
FOLDER_DIGITS = 16  # hexadecimal, of the content, in a folder's name


class Part(NamedTuple):
    """What is learned of a source: its bytes from ``start`` to ``stop``."""

    source: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: texts, how they become tokens, and where the folders of these are."""

    store: Path
    held_out: list[Part]
    training: list[Part]
    validation_bytes: int
    tokenizer: str
    encoder: Encoder | None

    @property
    def parts(self) -> list[Part]:
        """All parts, in the order of their sources' sha256."""
        return self.held_out + self.training

    @property
    def sources(self) -> list[Source]:
        """All sources, in that order."""
        return list(dict.fromkeys(part.source for part in self.parts))

    @cached_property
    def sha256(self) -> str:
        """Of all that the tokens depend on; the sources' digests stand for their content."""
        tokenizer = self.encoder.sha256 if self.encoder else self.tokenizer
        version = data_record.SCHEMA_VERSION
        settings = f"{version} {tokenizer} {self.validation_bytes} {SHARD_TOKENS}\n".encode()
        digests = b"".join(source.digest for source in self.sources)
        return hashlib.sha256(settings + digests).hexdigest()

    @property
    def folder(self) -> Path:
        """Where the tokens are when all are written."""
        return self.store / self.sha256[:FOLDER_DIGITS]


def split(sources: list[Source], validation_bytes: int) -> tuple[list[Part], list[Part]]:
    """What is held out for validation, and what is trained on."""
    held_out, training, missing = list[Part](), list[Part](), validation_bytes
    for source in sources:
        if not missing:
            training.append(Part(source, 0, source.size))
        elif source.size > validation_bytes:
            cut = cut_offset(source, source.size - missing)
            held_out.append(Part(source, cut, source.size))
            training.append(Part(source, 0, cut))
            missing = 0
        else:
            held_out.append(Part(source, 0, min(missing, source.size)))
            missing -= held_out[-1].stop
    rest = sum(part.stop for part in training)
    if missing or not rest:
        raise UserError(
            "JW181",
            f"data: too short: the {len(sources)} different files leave {rest} bytes for training "
            f"after {validation_bytes - missing} for validation; lower validation_bytes "
            f"({validation_bytes}) or add text",
        )
    return held_out, training


def read_part(part: Part, progress: ProgressReporter) -> Iterator[bytes]:
    """Content of a part, in chunks."""
    position = 0
    for chunk in read_verified(part.source, progress):
        start, stop = (max(0, bound - position) for bound in (part.start, part.stop))
        if piece := chunk[start:stop]:
            yield piece
        position += len(chunk)


def read_validation(data: Preparation, progress: ProgressReporter) -> list[bytes]:
    """Held-out texts, without half a character for a tokenizer."""
    texts = []
    for part in data.held_out:
        text = b"".join(read_part(part, progress))
        if data.encoder and part.stop < part.source.size:
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


def write_shards(folder: Path, arrays: Iterable[Tokens]) -> list[int]:
    """Write tokens to shards, and return how many are in each."""
    counts: list[int] = []
    with contextlib.ExitStack() as stack:
        for tokens in arrays:
            while len(tokens):
                if not counts or counts[-1] == SHARD_TOKENS:
                    stack.close()
                    path = folder / data_record.shard(len(counts))
                    file = stack.enter_context(path.open("wb"))
                    counts.append(0)
                part = tokens[: SHARD_TOKENS - counts[-1]]
                file.write(part.data)
                counts[-1] += len(part)
                tokens = tokens[len(part) :]
    return counts


def write(data: Preparation, folder: Path) -> DataRecord:
    """Write all tokens and measure them; returns their record, which is not written yet."""
    vocabulary, dtype_name = 256, "uint8"
    if data.encoder:
        vocabulary = data.encoder.vocabulary
        dtype_name = "uint16" if vocabulary <= 2**16 else "uint32"  # uint8 stands for bytes
    dtype = np.dtype(dtype_name).newbyteorder("<")
    progress = ProgressReporter("writing", [part.source.file for part in data.parts])

    texts = read_validation(data, progress)
    validation = b"".join(texts)
    documents = [[text] for text in texts]
    tokens = np.concatenate([np.empty(0, dtype), *encode(documents, data.encoder, dtype)])
    (folder / data_record.VALIDATION).write_bytes(tokens.data)

    counts_256 = np.zeros(256, np.int64)

    def counted(part: Part) -> Iterator[bytes]:
        for chunk in read_part(part, progress):
            counts_256[:] += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
            yield chunk

    shards = write_shards(folder, encode(map(counted, data.training), data.encoder, dtype))
    trip = RoundTrip(len(tokens), 0, True)
    if data.encoder:
        trip = round_trip(documents, data.encoder)
    if not trip.lossless:
        log(f"Warning: {trip.loss()}")
    if not shards or not len(tokens):
        raise UserError(
            "JW181",
            f"data: only {sum(shards)} tokens for training, {len(tokens)} for validation",
        )
    return DataRecord(
        files=len(data.sources),
        tokenizer=data.tokenizer,
        tokenizer_sha256=data.encoder.sha256 if data.encoder else None,
        vocabulary=vocabulary,
        dtype=dtype_name,
        shards=tuple(shards),
        train_tokens=sum(shards),
        train_bytes=int(counts_256.sum()),
        validation_tokens=len(tokens),
        validation_bytes=len(validation),
        special_tokens=len(tokens) - trip.tokens,
        unknown_tokens=trip.unknown,
        lossless=trip.lossless,
        unigram_bits_per_byte=unigram_bits(counts_256, np.frombuffer(validation, np.uint8)),
        gzip_bits_per_byte=gzip_bits(validation),
        sha256=data.sha256,
        folder=str(data.folder),
    )


@contextlib.contextmanager
def disk_full_as_error(folder: Path) -> Iterator[None]:
    """Say in one sentence that there is no space left for what is written to a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            "JW185",
            f"{folder} is full: free some space or inodes there (your quota limits both), or "
            "choose another folder",
        ) from None


def text_of(record: DataRecord) -> str:
    return json.dumps(record.to_json(), indent=1) + "\n"


def prepare(data: Preparation) -> DataRecord:
    """Make the folder, unless it holds these data already, and return its record."""
    folder = data.folder
    with exclusive_lock(folder):
        present = data_record.read_prepared(folder / data_record.RECORD)
        if present and present.sha256 == data.sha256:
            log(f"{folder} holds these data already")
            return present
        part = folder.with_name(f"{folder.name}.part")
        remove(folder, part)  # damaged, or left by a kill
        try:
            part.mkdir()
            record = write(data, part)
            (part / data_record.RECORD).write_text(text_of(record))
            part.rename(folder)
        except BaseException:
            remove(part)
            raise
    log(
        f"{folder}: {record.train_tokens:,} tokens to train on, "
        f"{record.validation_tokens:,} for validation"
    )
    return record


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, required=True, help="folder for that of the shards")
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    for name, option in OPTIONS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=int if option["type"] == "integer" else str,
            nargs="+" if option["type"] == "array" else None,
            default=option["default"],
            help=option["description"],
        )


def run(args: argparse.Namespace) -> None:
    encoder = None if args.tokenizer in BYTE_TOKENIZERS else load_tokenizer(args.tokenizer)
    sources = scan_files(args.data, raw=args.tokenizer == RAW)
    held_out, training = split(sources, args.validation_bytes)
    store, length = args.store.absolute(), args.validation_bytes
    with disk_full_as_error(store):
        record = prepare(Preparation(store, held_out, training, length, args.tokenizer, encoder))
    with disk_full_as_error(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_replace({args.out: text_of(record)})
