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
def test_windows_lie_in_one_shard(dtype):
    made, context = numbered(9, 3, 4, 12, 5, dtype=dtype), 4
    offsets = np.concatenate(
        [dataset.window_offsets(made, 0, step, 100, context) for step in range(1, 6)]
    )
    assert offsets.dtype == np.int64
    # The first shard is two windows and a token; the fourth has three more, left out anywhere.
    assert np.unique(offsets).tolist() == [0, 4, *range(16, 24), 28]
    rows = dataset.windows(made, offsets, context)
    assert rows.shape == (500, 5) and rows.dtype == dtype
    np.testing.assert_array_equal(rows, offsets[:, None] + np.arange(5))


@pytest.mark.parametrize("batch", [1, 7, 64, 400])
def test_an_epoch_reads_each_window_once(batch):
    """An epoch has 31 + 25 windows; what is predicted of one is predicted of no other."""
    made, context, total = numbered(500, 401), 16, 31 + 25
    taken = [dataset.window_offsets(made, 3, step, batch, context) for step in range(1, 449)]
    epochs = np.concatenate(taken)[: 8 * total].reshape(8, total)
    for epoch in epochs:
        targets = epoch[:, None] + np.arange(1, context + 1)
        assert len(np.unique(targets)) == total * context
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_starts_depend_on_seed_and_step_only():
    made = numbered(300, 200)
    first = dataset.window_offsets(made, 0, 1, 64, 16)
    np.testing.assert_array_equal(first, dataset.window_offsets(made, 0, 1, 64, 16))
    assert (first != dataset.window_offsets(made, 0, 2, 64, 16)).any()
    assert (first != dataset.window_offsets(made, 1, 1, 64, 16)).any()


def mixed(shares, *lengths, batch=64, seed=1):
    """Sources of two blocks of windows, each source having one shard, and their offsets."""
    made = numbered(*lengths)
    record = data_record(shards=lengths, sources=dict.fromkeys("abc", 1))
    made = made._replace(record=record, mixture=shares)
    steps = range(1, 2 * dataset.BLOCK // batch + 1)
    offsets = np.concatenate(
        [dataset.window_offsets(made, seed, step, batch, 16) for step in steps]
    )
    return np.searchsorted(np.cumsum(lengths), offsets, side="right"), offsets


MIXTURE = {"c": 0.01, "a": 1, "b": 3.0}  # by name, in whatever order
LENGTHS = 801, 3001, 161


def test_sources_of_a_mixture_have_their_shares_at_random_places():
    sources, _ = mixed(MIXTURE, *LENGTHS)
    blocks = sources.reshape(2, dataset.BLOCK)
    counts = np.array([np.bincount(block, minlength=3) for block in blocks])
    expected = dataset.BLOCK * np.array([1, 3, 0.01]) / 4.01
    assert abs(counts - expected).max() <= 1
    between = np.diff(np.nonzero(sources == 0)[0])
    assert between.min() == 1 and between.max() > 12
    assert (blocks[0] != blocks[1]).any()


@pytest.mark.parametrize("source", [0, 1, 2])
def test_each_source_of_a_mixture_has_epochs(source):
    sources, offsets = mixed(MIXTURE, *LENGTHS)
    windows = LENGTHS[source] // 16
    own = offsets[sources == source]
    epochs = own[: len(own) // windows * windows].reshape(-1, windows)
    assert len(epochs) >= 2
    assert all(len(np.unique(epoch // 16)) == windows for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


def test_sources_of_one_size_have_orders_of_their_own():
    sources, offsets = mixed({"a": 1, "b": 1, "c": 1}, 801, 801, 801)
    first, second = (offsets[sources == source][:50] - 801 * source for source in (0, 1))
    assert len(np.unique(first // 16)) == 50 and (first // 16 != second // 16).any()


def test_a_mixture_depends_on_seed_and_position_only():
    _, by_few = mixed(MIXTURE, *LENGTHS, batch=128)
    _, by_many = mixed(MIXTURE, *LENGTHS, batch=dataset.BLOCK)
    np.testing.assert_array_equal(by_few, by_many)
    assert (mixed(MIXTURE, *LENGTHS, seed=2)[1] != by_few).any()


def test_without_a_mixture_all_sources_are_one():
    made = numbered(500, 401)
    several = made._replace(record=data_record(shards=(500, 401), sources={"a": 1, "b": 1}))
    for step in (1, 30):
        arguments = 0, step, 64, 16
        np.testing.assert_array_equal(
            dataset.window_offsets(several, *arguments), dataset.window_offsets(made, *arguments)
        )


def test_windows_are_those_of_earlier_trainings():
    made = numbered(500, 401)
    for step, expected in ((2, [240, 144, 64, 352]), (50, [144, 740, 16, 256])):
        assert dataset.window_offsets(made, 3, step, 4, 16).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_permutation_is_one(count):
    numbers = np.arange(count)
    permuted = dataset.permute(numbers, count, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(permuted), numbers)
    half = dataset.permute(numbers[::2], count, np.random.default_rng(1))
    np.testing.assert_array_equal(half, permuted[::2])  # of one number, whatever others are asked


def test_permutation_leads_each_number_anywhere():
    """Counts of a pair of numbers' places, and of neighbours' order, over many permutations."""
    count, trials = 20, 4000
    seen = np.array(
        [dataset.permute(np.arange(2), count, np.random.default_rng(i)) for i in range(trials)]
    )
    for places in seen.T:
        found = np.bincount(places, minlength=count)
        assert abs(found - trials / count).max() < 5 * (trials / count) ** 0.5
    ordered = (seen[:, 0] < seen[:, 1]).sum()
    assert abs(ordered - trials / 2) < 5 * (trials / 4) ** 0.5


def test_a_number_of_many_is_permuted_without_the_rest():
    numbers = np.array([0, 1, 10**12 - 1])
    permuted = dataset.permute(numbers, 10**12, np.random.default_rng(0))
    assert len({*permuted}) == 3 and permuted.max() < 10**12


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
    with pytest.raises(SystemExit, match=r"reads version 3: run snakemake again"):
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
