"""Data of trainings: whether they are there, can be read and are enough, and how often each token
is read."""

import functools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxway_shared import presets
from jaxway_shared.data_record import DataRecord, read_prepared
from jaxway_shared.errors import UserError

from jaxway.config.jobs import DataOptions, TrainJob
from jaxway.data.sources import find_files
from jaxway.data.tokenizer import load_tokenizer
from jaxway.preflight.finding import Finding, Findings, and_more, failure, passed


class TextFile(NamedTuple):
    path: Path
    bytes: int


class Demand(NamedTuple):
    """What the trainings that share data want of it, in tokens."""

    context: int
    read: int  # all steps of the longest training


@functools.cache
def files_of(*sources: str) -> list[TextFile]:
    """Files that entries of ``data`` name. There may be many, so once a run."""
    files = dict.fromkeys(file for source in sources for file in find_files(source))
    return [TextFile(file, file.stat().st_size) for file in files]


def record_of(data: DataOptions) -> DataRecord | None:
    """Record of a training's data, if they have been prepared and are there."""
    return read_prepared(Path(data.record))


@functools.cache
def vocabulary_size(tokenizer: str) -> int:
    """Entries of a tokenizer's vocabulary. UserError where it cannot be used."""
    if tokenizer == "bytes":
        return 256
    size: int = load_tokenizer(tokenizer).tokenizer.get_vocab_size()
    return size


def check_data(trainings: Mapping[str, TrainJob]) -> Findings:
    """One finding for all trainings that share data. ``trainings``: by label."""
    labels: dict[DataOptions, list[str]] = {}
    for label, job in trainings.items():
        if job.data:
            labels.setdefault(job.data, []).append(label)
    for data, sharing in labels.items():
        demand = demand_of(trainings[label] for label in sharing)
        try:
            yield check_prepared(data, sharing, demand) or check_files(data, sharing, demand)
        except UserError as error:
            yield failure(error.code, f"{sharing[0]}: {error}")


def demand_of(trainings: Iterable[TrainJob]) -> Demand:
    options = [presets.resolve(job.options) for job in trainings]
    return Demand(
        context=max(each["context"] for each in options),
        read=max(each["steps"] * each["global_batch"] * each["context"] for each in options),
    )


def check_prepared(data: DataOptions, labels: list[str], demand: Demand) -> Finding | None:
    """What is known of data that have been prepared; None, if they have not."""
    vocabulary_size(data.tokenizer)
    record = record_of(data)
    if record is None:
        return None
    times = times_read(demand.read, record.train_tokens)
    return passed(f"{and_more(labels)}: {record.train_tokens / 1e6:,.1f} M tokens, {times}")


def check_files(data: DataOptions, labels: list[str], demand: Demand) -> Finding:
    """Whether the files can be read, and what validation leaves of them is enough."""
    files, who = files_of(*data.data), labels[0]
    if unreadable := next((file for file in files if not os.access(file.path, os.R_OK)), None):
        return failure("JW512", f"{who}.data: {unreadable.path} cannot be read by this user")
    if not files:
        return failure("JW511", f"{who}.data: no file in {', '.join(data.data)}")
    size = sum(file.bytes for file in files)
    # A file is either held out or trained on.
    left = size - data.validation_bytes if files[1:] else 0
    what = f"{size / 1e6:,.1f} MB in {len(files)} files"
    if left <= demand.context:
        return failure(
            "JW513",
            f"{who}.data: {what} are too short for {data.validation_bytes:,} bytes of validation "
            f"and a context of {demand.context}: add text",
        )
    if data.tokenizer == "bytes":  # else a token has an unknown number of them
        what = f"{what}, {times_read(demand.read, left)}"
    return passed(f"{and_more(labels)}: {what}")


def times_read(wanted: int, available: int) -> str:
    """How often a token is read, in words."""
    times = math.ceil(wanted / available)
    return f"read {f'{times:,} times' if times > 1 else 'once'} at most"
