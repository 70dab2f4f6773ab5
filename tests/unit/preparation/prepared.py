"""What preparation tests look at: texts in order, and the tokens of a record."""

import hashlib
from pathlib import Path

import numpy as np
from jaxway_job import dataset
from jaxway_shared.data_record import RECORD, DataRecord

SENTENCES = "The ship sails at dawn. Über die Straße ging ein Bär; 日本語も少し。 x = f(y)\n"


def ordered(corpus: Path) -> list[bytes]:
    """Contents of the files, in the order of their sha256."""
    contents = {path.read_bytes() for path in corpus.iterdir()}
    return sorted(contents, key=lambda content: hashlib.sha256(content).digest())


def load(record: DataRecord) -> dataset.Data:
    """The data as trainings read them."""
    return dataset.load(Path(record.folder, RECORD))


def train_tokens(record: DataRecord) -> np.ndarray:
    """All tokens to train on."""
    return np.concatenate(load(record).shards)
