"""Windows that training and validation read of prepared data."""

import json
from typing import Any

import numpy as np
import pytest
from example_records import data_record
from jaxway_job import dataset


def numbered(*lengths, dtype="uint16"):
    """Data in memory of which each token is its own offset; validation is empty."""
    tokens: Any = np.split(np.arange(sum(lengths), dtype=dtype), np.cumsum(lengths)[:-1])
    return dataset.Data(data_record(shards=lengths), tokens, np.empty(0, dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_windows_lie_in_one_shard_and_each_is_as_likely(dtype):
    made, context = numbered(9, 3, 4, 12, 5, dtype=dtype), 4
    ends = np.cumsum(made.record.shards)
    valid = [p for p in range(33) if p + context < min(e for e in ends if e > p)]
    assert len(valid) == 5 + 0 + 0 + 8 + 1
    offsets = np.concatenate(
        [dataset.window_offsets(made, 0, step, 1000, context) for step in range(14)]
    )
    assert offsets.dtype == np.int64
    tokens, counts = np.unique(offsets, return_counts=True)
    assert tokens.tolist() == valid
    assert abs(counts - 1000).max() < 5 * 1000**0.5  # five standard deviations
    rows = dataset.windows(made, offsets, context)
    assert rows.shape == (14_000, 5) and rows.dtype == dtype
    np.testing.assert_array_equal(rows, offsets[:, None] + np.arange(5))


def test_starts_depend_on_seed_and_step_only():
    made = numbered(300, 200)
    first = dataset.window_offsets(made, 0, 1, 64, 16)
    np.testing.assert_array_equal(first, dataset.window_offsets(made, 0, 1, 64, 16))
    assert (first != dataset.window_offsets(made, 0, 2, 64, 16)).any()
    assert (first != dataset.window_offsets(made, 1, 1, 64, 16)).any()
    # As the trainings before there were shards.
    drawn = np.random.default_rng((7, 3)).integers(0, 500 - 16, 64)
    np.testing.assert_array_equal(dataset.window_offsets(numbered(500), 7, 3, 64, 16), drawn)


def test_process_reads_only_its_own_rows():
    made = numbered(50, 50)
    offsets = dataset.window_offsets(made, 0, 1, 8, 9)
    made.shards[:] = [Watched.of(shard) for shard in made.shards]
    Watched.read = 0
    part = dataset.windows(made, offsets[4:6], 9)
    assert Watched.read == 2 * 10
    np.testing.assert_array_equal(part, offsets[4:6, None] + np.arange(10))
    assert dataset.windows(made, offsets[:0], 9).shape == (0, 10)


class Watched(np.ndarray):
    """An array that counts the elements taken from it."""

    read = 0

    @classmethod
    def of(cls, array):
        return array.view(cls)

    def __getitem__(self, index):
        part = np.asarray(self)[index]
        Watched.read += part.size
        return part


def test_other_data_than_prepared_are_refused(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data_record(folder=str(tmp_path)).to_json()))
    with pytest.raises(SystemExit, match=r"train-00000.bin: No such file.*; run snakemake again"):
        dataset.load(path)
    path.write_text('{"schema_version": 99}')
    with pytest.raises(SystemExit, match=r"reads version 2: run snakemake again"):
        dataset.load(path)


def test_shards_shorter_than_the_context():
    with pytest.raises(SystemExit, match="the longest of 2 shards has 16 tokens, too few for"):
        dataset.window_offsets(numbered(16, 9), 0, 1, 4, 16)
    np.testing.assert_array_equal(
        dataset.window_offsets(numbered(9, 17), 0, 1, 4, 16), [9, 9, 9, 9]
    )


def test_shards_are_mapped_not_read(tmp_path):
    record = data_record(folder=str(tmp_path))
    for name, count in (("train-00000.bin", 50), ("validation.bin", 5)):
        (tmp_path / name).write_bytes(bytes(range(count)))
    (tmp_path / "data.json").write_text(json.dumps(record.to_json()))
    loaded = dataset.load(tmp_path / "data.json")
    assert all(isinstance(shard, np.memmap) and shard.mode == "r" for shard in loaded.shards)
    assert loaded.record == record
    start = np.array([10])
    row = dataset.windows(loaded, start, 20)
    assert type(row) is np.ndarray and row.flags.writeable
    np.testing.assert_array_equal(row[0], loaded.shards[0][10:31])


@pytest.mark.parametrize(("dtype", "before"), [("uint8", 10), ("uint16", 0), ("uint32", 0)])
@pytest.mark.parametrize("context", [8, 9, 32])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 47, 48, 49, 200])
def test_validation_scores_each_token_once_and_in_context(context, length, dtype, before):
    text = np.arange(1, length + 1, dtype=dtype)  # each token is its own position
    windows, weights = dataset.scoring_windows(text, context)
    scored = windows[:, 1:][weights == 1]
    np.testing.assert_array_equal(scored, text)
    assert (windows.dtype, weights.dtype) == (dtype, np.float32)
    assert weights.sum() == length and windows[0, 0] == before
    known = np.nonzero(weights[1:])[1]  # tokens of context that a later window's score has
    assert (known >= context // 2).all()
