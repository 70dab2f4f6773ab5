"""The record of prepared data, beside their shards, and the names of those files.

Tokens lie one after the other, little-endian, in the type that the record names.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxway_shared import versioned
from jaxway_shared.errors import UserError

SCHEMA_VERSION = 3
KIND = "record of prepared data"
REMEDY = "run snakemake again, which prepares the data again"
RECORD = "data.json"
VALIDATION = "validation.bin"


def shard(number: int, source: str = "") -> str:
    """File name of a shard of text to train on; the only source may have no name."""
    return f"train-{source}-{number:05}.bin" if source else f"train-{number:05}.bin"


@dataclass(frozen=True)
class DataRecord:
    """What the files in ``folder`` hold, and how compressible their text is.

    ``shards`` are the tokens in each shard, which begin after ``header_bytes``; those of one source
    after those of another, and how many are of each is in ``sources``. ``end_of_text`` is the token
    behind each document, if there is one. ``sha256`` is of the options and all documents. Of the
    ``validation_tokens``, ``special_tokens`` mark where documents begin and end, and
    ``unknown_tokens`` stand for what the tokenizer does not know. ``lossless``: the held-out text
    comes back from its tokens; else bits per byte of text say nothing.
    """

    documents: int
    tokenizer: str
    tokenizer_sha256: str | None
    vocabulary: int
    dtype: str
    end_of_text: int | None
    sources: dict[str, int]
    shards: tuple[int, ...]
    header_bytes: int
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

    @property
    def shard_names(self) -> list[str]:
        """File name of each shard."""
        counts = self.sources.items()
        return [shard(number, source) for source, count in counts for number in range(count)]

    @property
    def source_tokens(self) -> dict[str, int]:
        """Tokens of each source to train on."""
        shards = iter(self.shards)
        return {name: sum(islice(shards, count)) for name, count in self.sources.items()}

    def find_problem(self) -> UserError | None:
        """Why the files are not those of the record; None when they are."""
        record = Path(self.folder, RECORD)
        itemsize = self.token_type.itemsize
        counts = zip(self.shard_names, self.shards, strict=True)
        sizes = {name: self.header_bytes + count * itemsize for name, count in counts}
        sizes[VALIDATION] = self.validation_tokens * itemsize
        try:
            if self.read(record) != self:
                return UserError("JW186", f"{record} has changed: {REMEDY}")
            for name, size in sizes.items():
                file = record.with_name(name)
                if file.stat().st_size != size:
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
