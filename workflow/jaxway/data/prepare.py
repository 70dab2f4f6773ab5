"""Turn text into shards of tokens, once, for all trainings that read it.

Files in ``--folder``: ``train-00000.bin`` and so on, of SHARD_TOKENS each but for the last;
``validation.bin``; and ``data.json``, the record, which comes last and of which ``--out`` is a
copy. A folder that holds what the same files give is left as it is.

Validation is by whole file, so that no file has text on both sides: in the order of the sha256 of
their content, as good as random and the same on every machine, files go to validation until it is
full (the rest of its last file is not used), the others to training. Files of equal content count
once.
"""

import argparse
import codecs
import contextlib
import errno
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.data.sources import ProgressReporter, Source, read_verified, scan_files
from jaxway.data.tokenizer import Document, Encoder, Tokens, encode, load_tokenizer
from jaxway.files import atomic_replace, exclusive_lock, log

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
        "description": "held-out text, in bytes; files that it touches are not trained on",
    },
    "tokenizer": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "bytes",
        "description": "bytes, or the path of a tokenizer.json",
    },
}
SHARD_TOKENS = 2**28  # in a file of 256 MB to 1 GB


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared: texts, how they become tokens, and the folder for these."""

    folder: Path
    held_out: list[Source]
    training: list[Source]
    validation_bytes: int
    tokenizer: str
    encoder: Encoder | None

    @property
    def sources(self) -> list[Source]:
        """All files, in the order of their sha256."""
        return self.held_out + self.training

    @property
    def sha256(self) -> str:
        """Of all that the tokens depend on; the files' digests stand for their content."""
        tokenizer_sha256 = self.encoder.sha256 if self.encoder else None
        settings = f"{self.validation_bytes} {SHARD_TOKENS} {tokenizer_sha256}\n".encode()
        digests = b"".join(source.digest for source in self.sources)
        return hashlib.sha256(settings + digests).hexdigest()


def split(sources: list[Source], validation_bytes: int) -> tuple[list[Source], list[Source]]:
    """Files for validation and for training."""
    held_out, training, size = [], [], 0
    for source in sources:
        if size < validation_bytes:
            held_out.append(source)
            size += source.size
        else:
            training.append(source)
    rest = sum(source.size for source in training)
    if size < validation_bytes or not rest:
        raise UserError(
            "JW181",
            f"data: too short: the {len(sources)} different files leave {rest} bytes for training "
            f"after {min(size, validation_bytes)} for validation; lower validation_bytes "
            f"({validation_bytes}) or add text",
        )
    return held_out, training


def read_validation(data: Preparation, progress: ProgressReporter) -> list[tuple[Path, bytes]]:
    """Held-out texts, no longer than asked for, and without half a character for a tokenizer."""
    texts, length = [], data.validation_bytes
    for source in data.held_out:
        text = bytearray()
        for chunk in read_verified(source, progress):
            text += chunk[: length - len(text)]
        length -= len(text)
        if data.encoder and len(text) < source.size:
            _, whole = codecs.utf_8_decode(text, "ignore")
            del text[whole:]
        texts.append((source.path, bytes(text)))
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


def write(data: Preparation) -> DataRecord:
    """Write all tokens and measure them; returns their record, which is not written yet."""
    vocabulary, dtype_name = 256, "uint8"
    if data.encoder:
        vocabulary = data.encoder.vocabulary
        dtype_name = "uint16" if vocabulary <= 2**16 else "uint32"  # uint8 stands for bytes
    dtype = np.dtype(dtype_name).newbyteorder("<")
    progress = ProgressReporter("writing", sum(source.size for source in data.sources))

    texts = read_validation(data, progress)
    validation = b"".join(text for _, text in texts)
    documents = (Document(path, [text]) for path, text in texts)
    tokens = np.concatenate([np.empty(0, dtype), *encode(documents, data.encoder, dtype)])
    (data.folder / data_record.VALIDATION).write_bytes(tokens.data)

    counts_256 = np.zeros(256, np.int64)

    def counted(source: Source) -> Iterator[bytes]:
        for chunk in read_verified(source, progress):
            counts_256[:] += np.bincount(np.frombuffer(chunk, np.uint8), minlength=256)
            yield chunk

    documents = (Document(source.path, counted(source)) for source in data.training)
    shards = write_shards(data.folder, encode(documents, data.encoder, dtype))
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


def clear(folder: Path) -> None:
    """Delete what a preparation writes, the record first."""
    names = (data_record.RECORD, data_record.VALIDATION)
    for file in (*(folder / name for name in names), *folder.glob("train-*.bin")):
        file.unlink(missing_ok=True)


def prepare(data: Preparation) -> DataRecord:
    """Fill the folder, unless it holds these data already, and return its record."""
    with exclusive_lock(data.folder):
        data.folder.mkdir(exist_ok=True)
        present = data_record.read_prepared(data.folder / data_record.RECORD)
        if present and present.sha256 == data.sha256:
            log(f"{data.folder} holds these data already")
            return present
        clear(data.folder)
        try:
            record = write(data)
            atomic_replace({data.folder / data_record.RECORD: text_of(record)})
        except BaseException:
            clear(data.folder)
            raise
    log(
        f"{data.folder}: {record.train_tokens:,} tokens to train on, "
        f"{record.validation_tokens:,} for validation"
    )
    return record


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, required=True, help="folder of the shards")
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
    encoder = None if args.tokenizer == "bytes" else load_tokenizer(args.tokenizer)
    held_out, training = split(scan_files(args.data), args.validation_bytes)
    folder, length = args.folder.absolute(), args.validation_bytes
    with disk_full_as_error(folder):
        record = prepare(Preparation(folder, held_out, training, length, args.tokenizer, encoder))
    with disk_full_as_error(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_replace({args.out: text_of(record)})
