"""Turn text into shards of tokens, once, for all trainings that read it.

Runs on a host, as pull does. Files in ``--folder``: ``train-00000.bin`` and so on, of SHARD tokens
each but for the last; ``validation.bin``; and ``records.json``, the record, which comes last and of
which ``--out`` is a copy. Tokens lie one after the other, little-endian, in the type that the
record names. A folder that holds what the same files give is left as it is.

Validation is by whole file, so that no file has text on both sides: in the order of the sha256 of
their content, as good as random and the same on every machine, files go to validation until it is
full (the rest of its last file is not used), the others to training. Files of equal content count
once.
"""

import argparse
import codecs
import contextlib
import errno
import glob
import gzip
import hashlib
import json
import os
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxway_shared import records
from tokenizers import Tokenizer

from jaxway.files import TELL, alone, appear, fail, say

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
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
SHARD = 2**28  # tokens in a file: 256 MB to 1 GB
PIECE = 2**18  # bytes that are read, and at most tokenised, in one piece
BATCH = 2**24  # characters that are tokenised at once, in parallel; takes 1.3 GB of memory


class Source(NamedTuple):
    """A file to read: its path, size in bytes, and sha256."""

    path: Path
    size: int
    digest: bytes


Document = tuple[Path, Iterable[bytes]]  # its path and pieces of its content


class Encoder(NamedTuple):
    """A tokenizer, the special tokens it puts before and after a text, and its file's sha256."""

    tokenizer: Tokenizer
    before: list[int]
    after: list[int]
    sha256: str


class Progress:
    """Says now and then how many bytes of all are done."""

    def __init__(self, doing: str, total: int) -> None:
        self.doing, self.total, self.done, self.told = doing, total, 0, time.monotonic()

    def add(self, size: int) -> None:
        self.done += size
        if time.monotonic() - self.told > TELL:
            self.told = time.monotonic()
            say(f"{self.doing}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


def find_files(source: str) -> list[Path]:
    """Files that one entry of ``data`` names."""
    if source == "python":
        files = []
        for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
            below[:] = set(below) - NOT_THE_LIBRARY
            files += [Path(folder, name) for name in names if name.endswith(".py")]
    elif Path(source).is_dir():
        files = [path for path in Path(source).rglob("*") if path.is_file()]
    else:
        files = [path for path in map(Path, glob.glob(source, recursive=True)) if path.is_file()]
    return files


def read(path: Path, progress: Progress) -> Iterator[bytes]:
    """Content of a file, in pieces. Ends the program when it cannot be read."""
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                progress.add(len(piece))
                yield piece
    except OSError as error:
        fail(f"data: cannot read {path}: {error.strerror}")


def survey(sources: list[str]) -> list[Source]:
    """Files that ``data`` names, of those with equal content one, in the order of their sha256."""
    paths = []
    for source in sources:
        paths += find_files(source) or fail(f"data: {source} names no file")
    progress = Progress("reading", sum(path.stat().st_size for path in paths))
    files = {}
    for path in paths:
        digest, size = hashlib.sha256(), 0
        for piece in read(path, progress):
            digest.update(piece)
            size += len(piece)
        files[digest.digest()] = Source(path, size, digest.digest())
    return [files[digest] for digest in sorted(files)]


def read_again(source: Source, progress: Progress) -> Iterator[bytes]:
    """Content of a file, in pieces. Ends the program when it is not what survey() read."""
    digest = hashlib.sha256()
    for piece in read(source.path, progress):
        digest.update(piece)
        yield piece
    if digest.digest() != source.digest:
        fail(f"data: {source.path} has changed while it was read; run this again")


def load_tokenizer(path: str) -> Encoder:
    """The tokenizer in a file. Ends the program when there is none."""
    try:
        content = Path(path).read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Some word of its own, so that there is text between the special tokens.
        words = map(tokenizer.encode, tokenizer.get_vocab())
        word = next((word for word in words if 0 in word.special_tokens_mask), None)
    except OSError as error:
        fail(f"tokenizer: cannot read {path}: {error.strerror}")
    except Exception as error:  # the library has no type of its own
        fail(f"tokenizer: {path} is no tokenizer.json: {error}")
    if not word:
        fail(f"tokenizer: {path} knows no words")
    text = [i for i, special in enumerate(word.special_tokens_mask) if not special]
    before, after = word.ids[: text[0]], word.ids[text[-1] + 1 :]
    return Encoder(tokenizer, before, after, hashlib.sha256(content).hexdigest())


def cut(path: Path, pieces: Iterable[bytes]) -> Iterator[tuple[bool, str, bool]]:
    """Text of a document in pieces, each with whether it is the first, and the last.

    A document longer than PIECE is cut, after a newline if there is one: tokens there may be
    others than without the cut.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    first, text = True, ""
    try:
        for piece in pieces:
            if end := text.rfind("\n") + 1 or len(text):
                yield first, text[:end], False
                first = False
            text = text[end:] + decoder.decode(piece)
        text += decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        fail(f"data: {path} is not UTF-8, which a tokenizer needs")
    if text:
        yield first, text, True


def batches(documents: Iterable[Document]) -> Iterator[list[tuple[bool, str, bool]]]:
    """Pieces of all documents' text, as cut() gives them, about BATCH characters at once."""
    batch, size = [], 0
    for piece in (piece for document in documents for piece in cut(*document)):
        batch.append(piece)
        size += len(piece[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def encode(
    documents: Iterable[Document], encoder: Encoder | None, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Tokens of documents, in flat arrays one after the other."""
    if encoder is None:
        for _, pieces in documents:
            yield from (np.frombuffer(piece, dtype) for piece in pieces)
        return
    tokenizer, before, after, _ = encoder
    for batch in batches(documents):
        texts = [text for _, text, _ in batch]
        try:
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library has no type of its own
            fail(f"tokenizer: {error}")
        for (first, _, last), encoding in zip(batch, encodings, strict=True):
            yield np.array([*before * first, *encoding.ids, *after * last], dtype)


def write_shards(folder: Path, arrays: Iterable[np.ndarray]) -> list[int]:
    """Write tokens to shards, and return how many are in each."""
    counts: list[int] = []
    with contextlib.ExitStack() as stack:
        for tokens in arrays:
            while len(tokens):
                if not counts or counts[-1] == SHARD:
                    stack.close()
                    path = folder / records.shard(len(counts))
                    file = stack.enter_context(path.open("wb"))
                    counts.append(0)
                part = tokens[: SHARD - counts[-1]]
                file.write(part.data)
                counts[-1] += len(part)
                tokens = tokens[len(part) :]
    return counts


def unigram_bits(counts_256: np.ndarray, text: np.ndarray) -> float:
    """Bits per byte of a text (uint8) coded by how often each byte occurs in the training text.

    A cross entropy, with one added to each count so that a byte new to training has a cost.
    """
    counts_256 = counts_256 + 1
    return float(np.mean(-np.log2(counts_256 / counts_256.sum())[text]))


def gzip_bits(text: bytes) -> float:
    """Bits per byte of a text after gzip -9."""
    return 8 * len(gzip.compress(text, 9)) / len(text)


def found(folder: Path, sha256: str) -> records.Record | None:
    """The record of a folder that holds all that was made from the same content."""
    try:
        record = json.loads((folder / records.RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if record["sha256"] == sha256 and not records.problem(record) else None


def clear(folder: Path) -> None:
    """Delete what a preparation writes, the record first."""
    for file in (folder / records.RECORD, folder / records.VALIDATION, *folder.glob("train-*.bin")):
        file.unlink(missing_ok=True)


def split(sources: list[Source], validation_bytes: int) -> tuple[list[Source], list[Source]]:
    """Files for validation and for training. Ends the program when there are too few."""
    held_out, training, held = [], [], 0
    for source in sources:
        if held < validation_bytes:
            held_out.append(source)
            held += source.size
        else:
            training.append(source)
    rest = sum(source.size for source in training)
    if held < validation_bytes or not rest:
        fail(
            f"data: too short: the {len(sources)} different files leave {rest} bytes for training "
            f"after {min(held, validation_bytes)} for validation; lower validation_bytes "
            f"({validation_bytes}) or add text"
        )
    return held_out, training


def read_validation(
    sources: list[Source], length: int, encoder: Encoder | None, progress: Progress
) -> list[tuple[Path, list[bytes]]]:
    """Held-out documents, ``length`` bytes in all, less what a tokenizer's last character lacks."""
    documents = []
    for source in sources:
        text = bytearray()
        for piece in read_again(source, progress):
            text += piece[: length - len(text)]
        length -= len(text)
        if encoder and len(text) < source.size:
            _, whole = codecs.utf_8_decode(text, "ignore")
            del text[whole:]
        documents.append((source.path, [bytes(text)]))
    return documents


def write(
    folder: Path,
    held_out: list[Source],
    training: list[Source],
    length: int,
    encoder: Encoder | None,
) -> records.Record:
    """Write all tokens, at most ``length`` bytes of text for validation, and measure them."""
    vocabulary, name = 256, "uint8"
    if encoder:
        vocabulary = 1 + max(encoder.tokenizer.get_vocab().values())  # numbers may be left out
        name = "uint16" if vocabulary <= 2**16 else "uint32"
    dtype = records.token_type({"dtype": name})
    progress = Progress("writing", sum(source.size for source in held_out + training))

    documents = read_validation(held_out, length, encoder, progress)
    validation = b"".join(text for _, (text,) in documents)
    tokens = np.concatenate([np.empty(0, dtype), *encode(documents, encoder, dtype)])
    (folder / records.VALIDATION).write_bytes(tokens.data)

    counts_256 = np.zeros(256, np.int64)

    def counted(source: Source) -> Iterator[bytes]:
        for piece in read_again(source, progress):
            counts_256[:] += np.bincount(np.frombuffer(piece, np.uint8), minlength=256)
            yield piece

    texts = ((source.path, counted(source)) for source in training)
    shards = write_shards(folder, encode(texts, encoder, dtype))
    if not shards or not len(tokens):
        fail(f"data: only {sum(shards)} tokens for training, {len(tokens)} for validation")
    return {
        "vocabulary": vocabulary,
        "dtype": name,
        "shards": shards,
        "train_tokens": sum(shards),
        "train_bytes": int(counts_256.sum()),
        "validation_tokens": len(tokens),
        "validation_bytes": len(validation),
        "unigram_bits_per_byte": unigram_bits(counts_256, np.frombuffer(validation, np.uint8)),
        "gzip_bits_per_byte": gzip_bits(validation),
    }


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """End the program with one sentence when there is no room to write to a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(
            f"{folder} is full: make room there (space, inodes and your quota of both), or choose "
            "another folder"
        )


def write_json(file: Path, record: records.Record) -> None:
    """Write a file so that nobody ever sees half of it."""
    appear({file: json.dumps(record, indent=1) + "\n"})


def prepare(args: argparse.Namespace, folder: Path) -> records.Record:
    """Fill the folder, unless it holds these data already, and return its record."""
    encoder = None if args.tokenizer == "bytes" else load_tokenizer(args.tokenizer)
    sources = survey(args.data)
    held_out, training = split(sources, args.validation_bytes)
    # The files' digests stand for their content: a look at data that are there reads it only once.
    tokenizer_sha256 = encoder.sha256 if encoder else None
    settings = f"{args.validation_bytes} {SHARD} {tokenizer_sha256}\n".encode()
    digests = b"".join(source.digest for source in sources)
    sha256 = hashlib.sha256(settings + digests).hexdigest()
    with alone(folder):
        folder.mkdir(exist_ok=True)
        if record := found(folder, sha256):
            say(f"{folder} holds these data already")
            return record
        clear(folder)
        try:
            record = {
                "files": len(sources),
                "tokenizer": args.tokenizer,
                "tokenizer_sha256": tokenizer_sha256,
                **write(folder, held_out, training, args.validation_bytes, encoder),
                "sha256": sha256,
                "folder": str(folder),
            }
            write_json(folder / records.RECORD, record)
        except BaseException:
            clear(folder)
            raise
    tokens = (record["train_tokens"], record["validation_tokens"])
    say("{}: {:,} tokens to train on, {:,} for validation".format(folder, *tokens))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    args = parser.parse_args()
    folder = args.folder.absolute()
    with room(folder):
        record = prepare(args, folder)
    with room(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, record)
