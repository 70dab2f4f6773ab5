"""Statistics, on synthetic rounds of which the truth is known."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from jaxway.analysis import stats

TRIALS = 3000


def normal(rng, shape):
    return rng.normal(100, 3, shape)


def lognormal(rng, shape):
    return 100 * rng.lognormal(0, 0.5, shape)


def contaminated(rng, shape):
    """One round in ten is up to four times as slow, and as many are faster: the median is 100."""
    factor = np.exp2(2 * rng.uniform(-1, 1, shape))
    return normal(rng, shape) * np.where(rng.random(shape) < 0.2, factor, 1)


SHAPES = pytest.mark.parametrize("draw", [normal, lognormal, contaminated])


def walk(rng, trials, slots):
    """A machine's speed as it drifts, by 6 % from one slot to the next."""
    return np.exp(np.cumsum(rng.normal(0, 0.06, (trials, slots)), axis=1))


def share(verdict, pairs, margin=0.0):
    """How often the comparison of two samples says this."""
    found = [stats.compare(a, b, True, margin).verdict for a, b in pairs]
    return sum(x in verdict for x in found) / len(found)


WOLF = ("faster", "slower")


@SHAPES
@pytest.mark.parametrize("n", [6, 10, 20])
def test_interval_has_its_coverage(draw, n):
    ordered = np.sort(draw(np.random.default_rng(n), (100_000, n)))
    # It always has the same ranks; to ask for each is too slow.
    low, high = map(int, stats.interval(range(n)) or ())
    for sample in ordered[:50]:
        assert stats.interval(sample[::-1]) == (sample[low], sample[high])
    assert 0.95 <= np.mean((ordered[:, low] <= 100) & (ordered[:, high] >= 100)) <= 0.999


def test_ten_rounds_leave_out_the_lowest_and_the_highest():
    assert stats.interval([9, 1, 8, 2, 7, 3, 6, 4, 10, 5]) == (2, 9)


def test_interval_agrees_with_scipy():
    for n in range(1, 60):
        expected = scipy.stats.quantile_test(range(n), p=0.5).confidence_interval()
        np.testing.assert_array_equal(stats.interval(range(n)) or [math.nan] * 2, expected)


@pytest.mark.parametrize("n", range(1, 6))
def test_too_few_rounds_have_no_interval(n):
    assert stats.interval(range(n)) is None


def test_equal_rounds_have_an_interval():
    assert stats.interval([2.0] * 6) == (2.0, 2.0)


@SHAPES
@pytest.mark.parametrize("n", [4, 6, 10])
def test_compare_has_few_false_positives(draw, n):
    samples = draw(np.random.default_rng(n), (TRIALS, 2, n))
    assert 0.005 < share(WOLF, samples) <= 0.05


@pytest.mark.parametrize(("n", "often"), [(4, 0.8), (6, 0.95), (10, 0.99)])
def test_compare_finds_a_shift(n, often):
    samples = normal(np.random.default_rng(n), (500, 2, n)) * [[1], [0.9]]
    assert share(("slower",), samples) > often


def taking_turns(trials, slowdown=1.0, rounds=15, drift=0.01):
    """Rounds of A and of B, A B B A A B ..., as on this machine: noise of 2.5 %, drift, and a
    round in eight that something else slows by up to a half."""
    rng = np.random.default_rng(1)
    shape = (trials, rounds, 2)
    speed = np.exp(np.cumsum(rng.normal(0, drift, (trials, 2 * rounds)), axis=1)).reshape(shape)
    speed[:, 1::2] = speed[:, 1::2, ::-1]
    noise = rng.normal(1, 0.025, shape) * np.where(rng.random(shape) < 1 / 8, 0.5, 1)
    return (speed * noise).swapaxes(1, 2) * [[1], [slowdown]]


@pytest.mark.parametrize("drift", [0, 0.01, 0.06])
def test_interleaved_rounds_seldom_mistake_drift(drift):
    """One after the other, 10 rounds of each, they would: this is what taking turns is for."""
    assert share(WOLF, taking_turns(800, drift=drift), margin=0.02) <= 0.05
    blocks = walk(np.random.default_rng(1), 200, 20).reshape(-1, 2, 10)
    assert share(WOLF, blocks) > 0.5


def test_interleaved_rounds_find_a_slowdown():
    assert share(("slower",), taking_turns(500, 0.95, drift=0.005), margin=0.02) >= 0.9
    assert share(("slower",), taking_turns(500, 0.95, drift=0.005, rounds=6), margin=0.02) < 0.8


A = [100.0, 101, 102, 99, 98, 100]


def times(*ratios):
    """Values of B that are these times those of A."""
    return [a * ratio for a, ratio in zip(A, itertools.cycle(ratios), strict=False)]


@pytest.mark.parametrize(
    ("ratio", "higher_is_better", "verdict"),
    [
        (1.1, True, "faster"),
        (0.9, True, "slower"),
        (1.1, False, "slower"),
        (0.9, False, "faster"),
        (1.0, True, "no difference"),
    ],
)
def test_direction(ratio, higher_is_better, verdict):
    found = stats.compare(A, times(ratio), higher_is_better, 0.02)
    assert found.ratio == pytest.approx(ratio, rel=0.01)
    assert found.verdict == verdict
    assert found.interval and found.interval[0] <= found.ratio <= found.interval[1]


@pytest.mark.parametrize(("margin", "verdict"), [(0.029, "faster"), (0.031, "no difference")])
def test_margin(margin, verdict):
    found = stats.compare([100.0] * 6, [103.0] * 6, True, margin)
    assert found.interval == pytest.approx((1.03, 1.03))
    assert found.verdict == verdict


def test_an_interval_that_holds_one_is_no_difference():
    found = stats.compare([100.0] * 6, [90.0, 95, 120, 120, 120, 120], True, 0.02)
    assert found == (pytest.approx(1.2), pytest.approx((0.9, 1.2)), "no difference")


def test_too_few_to_compare():
    found = stats.compare([1.0] * 3, [0.5] * 3, True, 0.02)
    assert found == (0.5, None, "too few: 3 and 3")


def test_compare_takes_samples_of_different_size():
    found = stats.compare(A, times(0.5)[:4], True, 0.02)
    assert found.ratio == pytest.approx(0.5, rel=0.02)
    assert found.verdict == "slower"


@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 4), (3, 6), (5, 4)])
@pytest.mark.parametrize("tail", [0.005, 0.025, 0.05, 0.2])
def test_rank_sum_quantile_is_that_of_all_orders(m, n, tail):
    u = np.array([sum(x) - m * (m - 1) // 2 for x in itertools.combinations(range(m + n), m)])
    largest = max(k for k in range(m * n + 1) if np.mean(u < k) <= tail)
    assert stats.rank_sum_quantile(m, n, tail) == largest


def test_rank_sum_of_many():
    """As the normal distribution has it."""
    n = 300
    normal = n * n / 2 - 1.95996 * math.sqrt(n * n * (2 * n + 1) / 12)
    assert stats.rank_sum_quantile(n, n, 0.025) == pytest.approx(normal, abs=3)


def test_rank_sum_agrees_with_scipy():
    rng = np.random.default_rng(0)
    for m, n in rng.integers(1, 11, (50, 2)):
        a, b = rng.random(m), rng.random(n) + 0.3
        u, p = scipy.stats.mannwhitneyu(a, b, alternative="less", method="exact")
        assert stats.rank_sum_quantile(m, n, p * 1.000001) > u
        assert stats.rank_sum_quantile(m, n, p * 0.999999) <= u


def by_node(*values):
    return {f"n{k}": v for k, v in enumerate(values)}


@pytest.mark.parametrize("others", [1, 2, 18])
def test_slow_value_is_an_outlier(others):
    rng = np.random.default_rng(0)
    values = by_node(80.0, *(100 + rng.normal(0, 0.5, others)))
    found = stats.outliers(values, [] if others > 1 else [99.5, 100.5], 0.05)
    assert list(found) == ["n0"]
    assert found["n0"] == pytest.approx(0.2, abs=0.01)


def test_earlier_values_are_no_outliers():
    assert stats.outliers(by_node(100.0, 100.0, 99.0), [50.0], 0.05) == {}


def test_fast_value_is_no_outlier():
    assert stats.outliers(by_node(100.0, 100.0, 150.0), [], 0.05) == {}


@pytest.mark.parametrize("values", [[100.0] * 5, [100.0], [99.9, 100.0, 100.1]])
def test_equal_values_have_no_outlier(values):
    assert stats.outliers(by_node(*values), [], 0.05) == {}


@pytest.mark.parametrize(("slow", "count"), [(94.9, 1), (95.1, 0)])
def test_outliers_are_further_off_than_the_margin(slow, count):
    assert len(stats.outliers(by_node(slow, *[100.0] * 5), [], 0.05)) == count


@pytest.mark.parametrize(("slow", "count"), [(-0.2079, 1), (-0.2073, 0)])
def test_outliers_are_further_off_than_the_spread(slow, count):
    """The MAD of the logarithms is 0.04 here, and 3.5 times 1.4826 times 0.04 is 0.2076."""
    values = by_node(*np.exp([slow, -0.04, -0.03, 0, 0.04, 0.05, 0.04]))
    assert len(stats.outliers(values, [], 0.05)) == count


def test_summary():
    rounds = [[1.0, 2.0, 30.0], [4.0, 5.0], [9.0, 7.0, 8.0]]
    found = stats.summary(rounds)
    assert found.p95 == pytest.approx(np.percentile(np.concatenate(rounds), 95))
    assert (found.median, found.interval, found.min, found.max) == (4.5, None, 1.0, 30.0)
    assert found.rounds == [2.0, 4.5, 8.0]


def test_summary_of_enough_rounds():
    assert stats.summary([[k, k, k] for k in range(6)]).interval == (0, 5)
