"""What training reads of the prepared data: windows of its token shards.

Needs numpy only. N is a number of windows, T the context; a window is T+1 tokens, in the type that
the record names. An offset is a token's number in all shards one after the other.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxway_shared.data_record import VALIDATION, DataRecord
from jaxway_shared.errors import UserError, fail

BLOCK = 2**12  # windows of which each source of a mixture has its share


class Data(NamedTuple):
    """Prepared data: its record, the shards to train on, mapped to memory, and the held-out text.

    All are flat arrays of tokens. ``mixture``: shares of the sources; None: all are one.
    """

    record: DataRecord
    shards: list[np.memmap]
    validation: np.ndarray
    mixture: Mapping[str, float] | None = None


def load(path: Path, mixture: Mapping[str, float] | None = None) -> Data:
    """Open the data whose record is in a file. Ends the program when they are not as prepared."""
    try:
        record = DataRecord.read(path)
        if problem := record.find_problem():
            raise problem
        if mixture and {*mixture} != {*record.sources}:
            raise UserError("JW029", f"mixture: must name {', '.join(record.sources)}")
    except UserError as error:
        fail(error.code, str(error))
    except OSError as error:
        fail("JW308", f"{path} cannot be read: {error.strerror}")
    folder, dtype = Path(record.folder), record.token_type
    begin, names = record.header_bytes, record.shard_names
    shards = [np.memmap(folder / name, dtype, mode="r", offset=begin) for name in names]
    return Data(record, shards, np.fromfile(folder / VALIDATION, dtype), mixture)


def window_offsets(data: Data, seed: int, step: int, global_batch: int, context: int) -> np.ndarray:
    """Offsets N, int64, of a step's windows (steps count from 1), given by seed and step alone.

    Each source of a mixture has epochs of its own. Ends the program when one has no window.
    """
    tokens = np.array(data.record.shards)
    numbers = np.arange((step - 1) * global_batch, step * global_batch)  # of all windows ever taken
    if not data.mixture:
        return epoch_offsets(tokens, numbers, (seed, 0), context)
    shares = [data.mixture[name] for name in data.record.sources]
    sources, numbers = share(numbers, shares, seed)
    offsets, end = np.empty(global_batch, np.int64), 0
    for source, shards in enumerate(data.record.sources.values()):
        begin, end, own = end, end + shards, sources == source
        found = epoch_offsets(tokens[begin:end], numbers[own], (seed, source), context)
        offsets[own] = tokens[:begin].sum() + found
    return offsets


def share(numbers: np.ndarray, shares: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For windows N, int64: the source of each, and how many of this source were before it.

    Of BLOCK windows each source has its share, at random places.
    """
    every = np.arange(len(shares))
    ends = np.rint(np.cumsum(shares) / sum(shares) * BLOCK).astype(np.int64)
    sources, before = np.empty_like(numbers), np.empty_like(numbers)
    for block in np.unique(numbers // BLOCK).tolist():
        now = numbers // BLOCK == block
        random = np.random.default_rng((seed, block, len(shares)))  # which is no source's number
        places = permute(np.arange(BLOCK), BLOCK, random)
        is_of = np.searchsorted(ends, places, side="right")[:, None] == every  # BLOCK x sources
        counts = block * np.diff(ends, prepend=0) + np.cumsum(is_of, axis=0) - is_of
        rows = numbers[now] % BLOCK
        sources[now] = found = is_of[rows].argmax(axis=1)
        before[now] = counts[rows, found]
    return sources, before


def epoch_offsets(
    tokens: np.ndarray, numbers: np.ndarray, key: tuple[int, int], context: int
) -> np.ndarray:
    """Offsets N, int64, in a source's shards of so many tokens, of its windows of these numbers.

    The windows of an epoch lie side by side in the shards, T tokens apart, and each is taken once,
    in an order of the epoch's own. What a shard has more than whole windows is left out before or
    behind them, split at random.
    """
    counts = np.maximum(tokens - 1, 0) // context  # of windows in each shard
    total = int(counts.sum())
    if not total:
        fail(
            "JW309",
            f"data: the longest of {len(tokens)} shards has {tokens.max()} tokens, too few for a "
            f"context of {context}",
        )
    ends = np.cumsum(counts)
    offsets = np.empty(len(numbers), np.int64)
    for epoch in np.unique(numbers // total).tolist():
        now = numbers // total == epoch
        seed, source = key
        random = np.random.default_rng((seed, epoch, source))
        picks = permute(numbers[now] % total, total, random)
        shards = np.searchsorted(ends, picks, side="right")
        left_out = random.integers(0, np.maximum(tokens - counts * context, 1))  # before the first
        begins = np.cumsum(tokens) - tokens + left_out - (ends - counts) * context
        offsets[now] = begins[shards] + picks * context
    return offsets


def permute(numbers: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Where a random permutation of range(count) leads numbers N, int64; no more of it is computed.

    A Feistel network of four rounds (Luby and Rackoff 1988) permutes the least power of four that
    is no less than count; what it leads out of the range, it is led on from (cycle walking, Black
    and Rogaway 2002).
    """
    bits = np.uint64(((count - 1).bit_length() + 1) // 2)  # of each half
    mask = (np.uint64(1) << bits) - np.uint64(1)
    keys = random.integers(0, 2**64, 4, np.uint64)
    result = numbers.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        left, right = result[outside] >> bits, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        result[outside] = left << bits | right
        outside = result >= count
    return result.astype(np.int64)


def mixed(bits: np.ndarray) -> np.ndarray:
    """Numbers N, uint64, each bit of which depends on all bits of another: the end of SplitMix64
    (Steele, Lea and Flood 2014)."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


def windows(data: Data, offsets: np.ndarray, context: int) -> np.ndarray:
    """Windows Nx(T+1) at the given offsets; nothing else is read."""
    tokens = np.array(data.record.shards)
    ends = np.cumsum(tokens)
    shards = np.searchsorted(ends, offsets, side="right")
    result = np.empty((len(offsets), context + 1), data.validation.dtype)
    starts = offsets - (ends - tokens)[shards]  # in its shard
    for row, shard_number, start in zip(result, shards.tolist(), starts.tolist(), strict=True):
        row[:] = data.shards[shard_number][start : start + context + 1]
    return result


def scoring_windows(text: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows Nx(T+1) over a text, and weights NxT, float32, that count each of its tokens once.

    A window starts half a context after the one before it and scores the tokens that this one did
    not reach, so all but the first have at least half a context before them. The text's first
    token comes after a newline if tokens are bytes, else after token 0.
    """
    stride = context // 2
    count = 1 + math.ceil(max(0, len(text) - context) / stride)
    starts = stride * np.arange(count)
    padded = np.zeros(starts[-1] + context + 1, text.dtype)
    padded[0] = ord("\n") if text.dtype == np.uint8 else 0
    padded[1 : len(text) + 1] = text
    position = starts[:, None] + np.arange(context)
    new = (position >= starts[:, None] + context - stride) | (starts[:, None] == 0)
    weights = new & (position < len(text))
    return padded[starts[:, None] + np.arange(context + 1)], weights.astype(np.float32)
