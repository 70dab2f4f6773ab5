"""The record of prepared data, beside their shards, and the names of those files.

Tokens lie one after the other, little-endian, in the type that the record names.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxway_shared import versioned
from jaxway_shared.errors import UserError

SCHEMA_VERSION = 2
KIND = "record of prepared data"
REMEDY = "run snakemake again, which prepares the data again"
RECORD = "data.json"
VALIDATION = "validation.bin"


def shard(number: int) -> str:
    """File name of a shard of text to train on."""
    return f"train-{number:05}.bin"


@dataclass(frozen=True)
class DataRecord:
    """What the files in ``folder`` hold, and how compressible their text is.

    ``shards`` are the tokens in each shard. ``sha256`` is of the options and the text's files.
    Of the ``validation_tokens``, ``special_tokens`` mark where documents begin and end, and
    ``unknown_tokens`` stand for what the tokenizer does not know. ``lossless``: the held-out text
    comes back from its tokens; else bits per byte of text say nothing.
    """

    files: int
    tokenizer: str
    tokenizer_sha256: str | None
    vocabulary: int
    dtype: str
    shards: tuple[int, ...]
    train_tokens: int
    train_bytes: int
    validation_tokens: int
    validation_bytes: int
    special_tokens: int
    unknown_tokens: int
    lossless: bool
    unigram_bits_per_byte: float
    gzip_bits_per_byte: float
    sha256: str
    folder: str

    @classmethod
    def read(cls, path: Path) -> "DataRecord":
        """The record in a file. UserError where it is none that can be read; OSError, no file."""
        return versioned.read_as(cls, path, KIND, SCHEMA_VERSION, REMEDY)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return versioned.encode(self, SCHEMA_VERSION)

    @property
    def token_type(self) -> np.dtype[Any]:
        """Type of a token in the files."""
        return np.dtype(self.dtype).newbyteorder("<")

    def find_problem(self) -> UserError | None:
        """Why the files are not those of the record; None when they are."""
        record = Path(self.folder, RECORD)
        tokens = {shard(number): count for number, count in enumerate(self.shards)}
        tokens[VALIDATION] = self.validation_tokens
        try:
            if self.read(record) != self:
                return UserError("JW186", f"{record} has changed: {REMEDY}")
            for name, count in tokens.items():
                file = record.with_name(name)
                if file.stat().st_size != count * self.token_type.itemsize:
                    return UserError("JW186", f"{file} has changed: {REMEDY}")
        except OSError as error:
            return UserError("JW186", f"{error.filename}: {error.strerror}; {REMEDY}")
        except UserError as error:
            return error
        return None


def read_prepared(path: Path) -> DataRecord | None:
    """The record in a file; None where there is none, or its data do not match it."""
    try:
        record = DataRecord.read(path)
    except (OSError, UserError):
        return None
    return None if record.find_problem() else record
