"""Turn text into shards of tokens, once, for all trainings that read it.

Files in a folder of ``--store`` that their content names: ``train-00000.bin`` and so on, of
SHARD_TOKENS each but for the last; ``validation.bin``; and ``data.json``, the record, of which
``--out`` is a copy. The folder appears whole, and one that is there is left as it is.

In the order of the sha256 of their text, documents of all sources together go to validation until
it is full, the others to training. So no document is on both sides (the rest of the last one held
out is not used), but for one that has more text than validation is to have: its end is held out.
Equal documents count once, for the first source that has them. Where there is a source to validate
on, it is its documents that are not trained on, as far as they are used.
"""

import argparse
import contextlib
import errno
import gzip
import hashlib
import itertools
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import BYTE_TOKENIZERS, RAW, DataOptions
from jaxway.data.corpus import Corpus, Document, cut_offset, read_document
from jaxway.data.sources import ProgressReporter
from jaxway.data.tokenizer import (
    Encoder,
    RoundTrip,
    Text,
    Tokens,
    encode,
    load_tokenizer,
    round_trip,
)
from jaxway.files import atomic_replace, exclusive_lock, log, remove

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "type": ["array", "object"],
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "minProperties": 1,
        "propertyNames": {"pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z"},
        "additionalProperties": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[^-]"},
            "minItems": 1,
        },
        "default": ["python"],
        "description": "text to learn: files, folders, globs, or python for Python's standard "
        "library; or several such lists by name, whose shares are in mixture",
    },
    "text_column": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "text",
        "description": "column or key of the text in Parquet, Arrow and JSON lines",
    },
    "validation": {
        "type": ["array", "null"],
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "default": None,
        "description": "text to validate on, as data. Null: some of data is held out",
    },
    "validation_bytes": {
        "type": "integer",
        "minimum": 1,
        "default": 131072,
        "description": "text to validate on, in bytes: whole documents, or the end of a larger one",
    },
    "tokenizer": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "bytes",
        "description": "bytes (of text), raw (bytes of any file), or the path of a tokenizer.json",
    },
    "end_of_text": {
        "type": ["string", "integer", "null"],
        "minimum": 0,
        "maximum": 255,
        "pattern": "^[^-]",
        "default": None,
        "description": "what follows each document: the tokenizer's token of this name, or a byte, "
        "0 to 255",
    },
}
SHARD_TOKENS = 2**28  # in a file of 256 MB to 1 GB
FOLDER_DIGITS = 16  # hexadecimal, of the content, in a folder's name


class Part(NamedTuple):
    """What is used of a document: its bytes from ``start`` to ``stop``."""

    document: Document
    start: int
    stop: int


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: documents, how they become tokens, and where the folders of these
    are. ``kept``: how many bytes of a document that is held out are trained on, by its digest."""

    store: Path
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

    @property
    def folder(self) -> Path:
        """Where the tokens are when all are written."""
        return self.store / self.sha256[:FOLDER_DIGITS]


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


def write(data: Preparation, folder: Path) -> DataRecord:
    """Write all tokens and measure them; returns their record, which is not written yet."""
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
    for name, counts in zip(names, shards, strict=True):
        if not counts or not trip.tokens:
            raise UserError(
                "JW181",
                f"data{name and f'.{name}'}: only {sum(counts)} tokens for training, "
                f"{trip.tokens} for validation",
            )
    return DataRecord(
        documents=sum(1 for _ in data.corpus.entries()),
        tokenizer=data.options.tokenizer,
        tokenizer_sha256=data.encoder.sha256 if data.encoder else None,
        vocabulary=vocabulary,
        dtype=dtype_name,
        end_of_text=data.end_of_text,
        sources={name: len(counts) for name, counts in zip(names, shards, strict=True)},
        shards=tuple(itertools.chain(*shards)),
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
            nargs="+" if "array" in option["type"] else None,
            default=option["default"],
            help=option["description"],
        )
    parser.add_argument(
        "--source",
        nargs="+",
        action="append",
        metavar=("NAME", "ENTRY"),
        help="in place of --data: one of several sources, and its files, folders and globs",
    )


def run(args: argparse.Namespace) -> None:
    encoder = None if args.tokenizer in BYTE_TOKENIZERS else load_tokenizer(args.tokenizer)
    named = [(name, tuple(entries)) for name, *entries in args.source or []]
    options = DataOptions(
        sources=tuple(named or [("", tuple(args.data))]),
        tokenizer=args.tokenizer,
        validation_bytes=args.validation_bytes,
        validation=tuple(args.validation or ()),
        text_column=args.text_column,
        end_of_text=args.end_of_text,
    )
    store, raw = args.store.absolute(), args.tokenizer == RAW
    with disk_full_as_error(store), Corpus(store) as corpus, Corpus(store) as other:
        corpus.read([entries for _, entries in options.sources], raw, options.text_column)
        if options.validation:
            other.read([options.validation], raw, options.text_column)
        documents = (other if options.validation else corpus).documents()
        held_out, missing = hold_out(documents, options.validation_bytes)
        kept = {part.document.digest: part.start for part in held_out}
        data = Preparation(store, options, encoder, corpus, held_out, kept)
        check_rest(data, missing)
        record = prepare(data)
    with disk_full_as_error(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_replace({args.out: text_of(record)})
