"""Shards of tokens that are there already, as nanoGPT and llm.c write them.

They are used where they lie: the folder of the data has a hard link to each, or, on another file
system, a copy. Their number of bytes of text is estimated by decoding a sample.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import DataOptions
from jaxway.data.find import find_files
from jaxway.data.shards import gzip_bits, unigram_bits
from jaxway.data.tokenizer import Encoder, Tokens

HEADER_BYTES = 1024  # of llm.c: 256 int32, the third of which is the number of tokens
CHUNK_TOKENS = 2**20  # that are read at once
SAMPLE_TOKENS = 2**20  # that are decoded, of all shards together
PIECE_TOKENS = 2**8


class TokenFile(NamedTuple):
    """A shard: sha256 of its tokens, the number of its source, and where the tokens begin."""

    digest: bytes
    source: int
    path: Path
    header: int  # bytes
    tokens: Tokens


@dataclass(frozen=True)
class TokenPreparation:
    """Shards to train on, and those to validate on."""

    options: DataOptions
    encoder: Encoder
    training: list[TokenFile]
    validation: list[TokenFile]

    @property
    def sha256(self) -> str:
        """Of all that a training depends on."""
        own = self.options
        chosen = own.validation_bytes, own.end_of_text, [name for name, _ in own.sources]
        settings = f"{data_record.SCHEMA_VERSION} {self.encoder.sha256} {chosen}\n"
        digest = hashlib.sha256(settings.encode())
        for file in (*self.training, *self.validation):
            digest.update(file.digest + bytes([file.source]))
        return digest.hexdigest()


def open_tokens(path: Path, dtype: np.dtype[Any]) -> tuple[int, Tokens]:
    """Bytes before a file's tokens, and the tokens, mapped to memory. UserError for other files."""
    size = path.stat().st_size
    head = np.fromfile(path, "<i4", 3).tolist()
    has_header = len(head) == 3 and size == HEADER_BYTES + head[2] * dtype.itemsize
    header = HEADER_BYTES if has_header else 0
    if (size - header) % dtype.itemsize or size == header:
        raise UserError("JW188", f"data: {path} is no shard of {dtype.name}: it has {size:,} bytes")
    return header, np.memmap(path, dtype, "r", offset=header)


def read_shards(
    entries: Sequence[Sequence[str]], dtype: np.dtype[Any], vocabulary: int
) -> list[TokenFile]:
    """Shards that entries of sources name, equal ones once. UserError where one is none."""
    found: dict[bytes, TokenFile] = {}
    for source, each in enumerate(entries):
        files = find_files(each)
        for problem in files.problems:
            raise UserError("JW180", f"data: {problem}")
        for file in files.files:
            header, tokens = open_tokens(file.path, dtype)
            digest = hashlib.sha256()
            for start in range(0, len(tokens), CHUNK_TOKENS):
                chunk = tokens[start : start + CHUNK_TOKENS]
                digest.update(chunk.data)
                if chunk.max() >= vocabulary:
                    raise UserError(
                        "JW188",
                        f"data: {file.path} has token {chunk.max()}, but the tokenizer has only "
                        f"{vocabulary}: name the one that made it, and the type of its tokens",
                    )
            shard = TokenFile(digest.digest(), source, file.path, header, tokens)
            found.setdefault(shard.digest, shard)
    return sorted(found.values(), key=lambda shard: (shard.source, shard.digest))


def decode(tokens: Tokens, encoder: Encoder) -> bytes:
    """Text of tokens, without special ones."""
    text: str = encoder.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text.encode()


def held_out(files: list[TokenFile], encoder: Encoder, wanted: int) -> tuple[Tokens, bytes]:
    """The first tokens that have so many bytes of text, or a few more; and this text."""
    tokens = np.concatenate([file.tokens[:wanted] for file in files])  # each has a byte, about
    count = size = 0
    while size < wanted and count < len(tokens):
        size += len(decode(tokens[count : count + PIECE_TOKENS], encoder))
        count += PIECE_TOKENS
    return tokens[:count], decode(tokens[:count], encoder)


def write(data: TokenPreparation, folder: Path, final: Path) -> DataRecord:
    """Link the shards, and write the tokens to validate on; returns the record of both.

    ``final`` is what the folder is called when it is whole.
    """
    encoder, names = data.encoder, [name for name, _ in data.options.sources]
    counts = [0] * len(names)
    for file in data.training:
        link = folder / data_record.shard(counts[file.source], names[file.source])
        counts[file.source] += 1
        try:
            os.link(file.path.resolve(), link)
        except OSError:  # another file system, or another user's file
            shutil.copyfile(file.path, link)
    tokens, text = held_out(data.validation, encoder, data.options.validation_bytes)
    (folder / data_record.VALIDATION).write_bytes(tokens.data)
    sample = [file.tokens[: SAMPLE_TOKENS // len(data.training)] for file in data.training]
    sampled = b"".join(decode(each, encoder) for each in sample)
    train_tokens = sum(len(file.tokens) for file in data.training)
    added = encoder.tokenizer.get_added_tokens_decoder()
    special = [token for token, content in added.items() if content.special]
    unknown = int((tokens == encoder.unknown).sum())
    lossless = not unknown and "\ufffd".encode() not in text
    end, counted = data.options.end_of_text, np.bincount(np.frombuffer(sampled, np.uint8))
    return DataRecord(
        documents=len(data.training) + len(data.validation),
        tokenizer=data.options.tokenizer,
        tokenizer_sha256=encoder.sha256,
        vocabulary=encoder.vocabulary,
        dtype=data.training[0].tokens.dtype.name,
        end_of_text=None if end is None else encoder.token(end),
        sources=dict(zip(names, counts, strict=True)),
        shards=tuple(len(file.tokens) for file in data.training),
        header_bytes=data.training[0].header,
        train_tokens=train_tokens,
        train_bytes=round(train_tokens * len(sampled) / sum(map(len, sample))),
        validation_tokens=len(tokens),
        validation_bytes=len(text),
        special_tokens=int(np.isin(tokens, special).sum()),
        unknown_tokens=unknown,
        lossless=lossless,
        unigram_bits_per_byte=unigram_bits(
            np.pad(counted, (0, 256 - len(counted))), np.frombuffer(text, np.uint8)
        ),
        gzip_bits_per_byte=gzip_bits(text),
        sha256=data.sha256,
        folder=str(final),
    )


def read(options: DataOptions, encoder: Encoder) -> TokenPreparation:
    """The shards that options name. UserError where they do not fit together."""
    dtype = np.dtype(options.token_shards).newbyteorder("<")
    entries = [each for _, each in options.sources]
    training = read_shards(entries, dtype, encoder.vocabulary)
    validation = read_shards([options.validation], dtype, encoder.vocabulary)
    same = {file.digest for file in training} & {file.digest for file in validation}
    for file in validation:
        if file.digest in same:
            raise UserError("JW188", f"data: {file.path} is to be trained on, too")
    if len({file.header for file in training}) > 1:
        raise UserError("JW188", "data: some shards have a header and others have none")
    for number, (name, _) in enumerate(options.sources):
        if number not in {file.source for file in training}:
            raise UserError("JW181", f"data.{name}: has no shard that no other source has")
    return TokenPreparation(options, encoder, training, validation)
