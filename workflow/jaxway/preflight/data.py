"""Data of trainings: whether they are there, can be read and are enough, and how often each token
is read."""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxway_shared import presets
from jaxway_shared.data_record import DataRecord, read_prepared
from jaxway_shared.errors import UserError

from jaxway.config.jobs import BYTE_TOKENIZERS, RAW, DataOptions, TrainJob
from jaxway.data.find import File, Found, find_files
from jaxway.data.sources import Look, first_text, look
from jaxway.data.token_shards import open_tokens
from jaxway.data.tokenizer import Encoder, Text, load_tokenizer, round_trip
from jaxway.preflight.finding import Finding, Findings, and_more, failure, passed, warning

SAMPLED_FILES, SAMPLED_BYTES = 16, 2**14  # of text that a tokenizer is tried on


class Demand(NamedTuple):
    """What the trainings that share data want of it, in tokens."""

    context: int
    read: int  # all steps of the longest training
    mixture: Mapping[str, float] | None = None  # of the longest training


@functools.cache
def found_files(*entries: str) -> Found:
    """Files that entries of ``data`` name. There may be many, so once a run."""
    return find_files(entries)


@functools.cache
def looks_of(column: str, *entries: str) -> list[Look]:
    """What a look at each of these files finds."""
    return [look(file, column) for file in found_files(*entries).files]


def record_of(data: DataOptions) -> DataRecord | None:
    """Record of a training's data, if they have been prepared and are there."""
    return read_prepared(Path(data.record))


@functools.cache
def cached_tokenizer(path: str) -> Encoder:
    """The tokenizer in a file. UserError where it cannot be used."""
    return load_tokenizer(path)


def vocabulary_size(tokenizer: str) -> int:
    """Entries of a tokenizer's vocabulary. UserError where it cannot be used."""
    return 256 if tokenizer in BYTE_TOKENIZERS else cached_tokenizer(tokenizer).vocabulary


def check_data(trainings: Mapping[str, TrainJob]) -> Findings:
    """What is found once for all trainings that share data. ``trainings``: by label."""
    labels: dict[DataOptions, list[str]] = {}
    for label, job in trainings.items():
        if job.data:
            labels.setdefault(job.data, []).append(label)
    for data, sharing in labels.items():
        demand = demand_of(trainings[label] for label in sharing)
        try:
            vocabulary_size(data.tokenizer)
            if data.end_of_text and data.tokenizer not in BYTE_TOKENIZERS:
                cached_tokenizer(data.tokenizer).token(data.end_of_text)
            if record := record_of(data):
                yield check_prepared(record, sharing, demand)
            else:
                yield from check_files(data, sharing, demand)
        except UserError as error:
            yield failure(error.code, f"{sharing[0]}.{error}")


def demand_of(trainings: Iterable[TrainJob]) -> Demand:
    options = [presets.resolve(job.options) for job in trainings]
    reads = [each["steps"] * each["global_batch"] * each["context"] for each in options]
    longest = options[reads.index(max(reads))]
    return Demand(max(each["context"] for each in options), max(reads), longest["mixture"])


def check_prepared(record: DataRecord, labels: list[str], demand: Demand) -> Finding:
    """What is known of data that have been prepared."""
    if record.train_tokens <= demand.context:
        return failure(
            "JW513",
            f"{labels[0]}.data: {record.train_tokens:,} tokens are left after validation, too few "
            f"for a context of {demand.context}: lower validation_bytes or add text",
        )
    tokens = f"{record.train_tokens / 1e6:,.1f} M tokens"
    often = reads(demand, record.train_tokens)
    if demand.mixture:
        whole = sum(demand.mixture.values())
        each = [
            f"{name} {demand.read * demand.mixture[name] / whole / available:,.2f} times"
            for name, available in record.source_tokens.items()
        ]
        often = f"of which the longest training reads {', '.join(each)}"
    return passed(f"{and_more(labels)}: {tokens}, {often}")


def check_files(data: DataOptions, labels: list[str], demand: Demand) -> Findings:
    """Whether the files can be read, are text, and leave enough after validation."""
    found, who = found_files(*data.entries), labels[0]
    for loop in found.loops:
        yield warning(f"{who}.data: {loop}: not followed again")
    for problem in found.problems:
        yield failure("JW511", f"{who}.data: {problem}")
    for file in found.files:
        if not os.access(file.path, os.R_OK):
            yield failure("JW512", f"{who}.data: {file.path} cannot be read by this user")
            return
    if data.token_shards:
        if not found.problems:
            yield check_tokens(data, labels, demand)
        return
    looks = [] if data.tokenizer == RAW else looks_of(data.text_column, *data.entries)
    refused = [each.error for each in looks if each.error]
    if refused:
        count = f"; files that are not read: {len(refused)}" if refused[1:] else ""
        yield failure(refused[0].code, f"{who}.{refused[0]}{count}")
    if not found.problems and not refused:
        packed = any(each.compressed or each.table for each in looks)
        yield check_size(data, labels, demand, found.files, packed)
        if data.tokenizer not in BYTE_TOKENIZERS:
            yield from check_round_trip(data, who, found.files)


def check_tokens(data: DataOptions, labels: list[str], demand: Demand) -> Finding:
    """Whether shards of tokens are some, and are enough. UserError where one is none."""
    dtype = np.dtype(data.token_shards)
    held_out = {*found_files(*data.validation).files}
    counts = {
        file: len(open_tokens(file.path, dtype)[1]) for file in found_files(*data.entries).files
    }
    tokens = sum(count for file, count in counts.items() if file not in held_out)
    if tokens <= demand.context:
        return failure("JW513", f"{labels[0]}.data: only {tokens:,} tokens in shards")
    said = f"{tokens / 1e6:,.1f} M tokens, {reads(demand, tokens)}"
    return passed(f"{and_more(labels)}: {said}")


def check_round_trip(data: DataOptions, who: str, files: list[File]) -> Findings:
    """A warning where the beginnings of some files do not come back from their tokens."""
    some = files[:: -(-len(files) // SAMPLED_FILES)]
    heads = [first_text(file, data.text_column)[:SAMPLED_BYTES] for file in some]
    whole = [head.decode(errors="ignore").encode() for head in heads]
    trip = round_trip([Text(0, [head]) for head in whole], cached_tokenizer(data.tokenizer))
    if not trip.lossless:
        yield warning(f"{who}.tokenizer: {trip.loss()}")


def check_size(
    data: DataOptions, labels: list[str], demand: Demand, files: list[File], packed: bool
) -> Finding:
    """Whether files leave enough after validation, as far as is known before they are read."""
    size = sum(file.bytes for file in {*files} - {*found_files(*data.validation).files})
    left = size - (0 if data.validation else data.validation_bytes)
    what = f"{size / 1e6:,.1f} MB in {len(files)} files"
    if packed:
        return passed(f"{and_more(labels)}: {what}, some of them compressed or tables")
    if left <= demand.context:
        return failure(
            "JW513",
            f"{labels[0]}.data: {size:,} bytes in {len(files)} files are too short for "
            f"{data.validation_bytes:,} bytes of validation and a context of {demand.context}: "
            "lower validation_bytes or add text",
        )
    if data.tokenizer in BYTE_TOKENIZERS:  # else a token has an unknown number of them
        what = f"{what}, {reads(demand, left)}"
    return passed(f"{and_more(labels)}: {what}")


def reads(demand: Demand, available: int) -> str:
    """How often a token is read, in words."""
    return f"which the longest training reads {demand.read / available:,.2f} times"
