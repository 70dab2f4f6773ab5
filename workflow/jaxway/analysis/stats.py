"""Statistics of repeated measurements: intervals, comparisons and outliers, for any distribution.

The independent observations are rounds: in each the program is started anew, some time after the
round before. Samples within a round share its memory layout, its clocks and its neighbours, so many
of them suggest a precision that the next start does not reproduce.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Confidence interval of the median, whatever the values' distribution is.

    As many are dropped at either end as the sign test allows (Hollander, Wolfe and Chicken 2014,
    3.6), for which scipy would take a second to import. None if even the whole range does not
    reach the confidence: with fewer than 6 values for 95 %.
    """
    n, ordered = len(values), sorted(map(float, values))
    ways = itertools.accumulate(math.comb(n, k) for k in range(n))  # that up to k are below it
    dropped = sum(each / 2**n <= (1 - CONFIDENCE) / 2 for each in ways)
    return (ordered[dropped - 1], ordered[-dropped]) if dropped else None


def best(samples: Sequence[Sequence[float]], higher_is_better: bool) -> list[float]:
    """The best sample of each round.

    Disturbances only ever add time, so of a few samples the fastest is the most reproducible one
    (Chen and Revels 2016, arXiv:1608.04295).
    """
    return [max(part) if higher_is_better else min(part) for part in samples]


class Comparison(NamedTuple):
    """Ratio of B to A with its interval, and what it means."""

    ratio: float
    interval: tuple[float, float] | None
    verdict: str


def compare(
    a: Sequence[float], b: Sequence[float], higher_is_better: bool, margin: float
) -> Comparison:
    """Is B faster or slower than A? Both are observations, all positive.

    The ratio is the median of all ratios of a B to an A, and its interval drops as many at
    either end as the rank-sum test allows (Hodges and Lehmann 1963; Hollander, Wolfe and Chicken
    2014, Nonparametric Statistical Methods, 4.3): exact for observations that are independent, and
    whose distributions differ in nothing but the ratio. A difference counts if it is more than
    ``margin``, a share of A, and the interval does not contain 1.
    """
    ratios = np.sort(np.divide.outer(np.asarray(b, float), np.asarray(a, float)).ravel())
    ratio = float(np.median(ratios))
    dropped = rank_sum_quantile(len(a), len(b), (1 - CONFIDENCE) / 2)
    if not dropped:
        return Comparison(ratio, None, f"too few: {len(a)} and {len(b)}")
    low, high = float(ratios[dropped - 1]), float(ratios[-dropped])
    better = ratio if higher_is_better else 1 / ratio
    if low <= 1 <= high or abs(better - 1) <= margin:
        return Comparison(ratio, (low, high), "no difference")
    return Comparison(ratio, (low, high), "faster" if better > 1 else "slower")


@functools.cache
def rank_sum_quantile(m: int, n: int, tail: float) -> int:
    """Largest k with P(U < k) <= tail, for the Mann-Whitney statistic U of m and n values alike."""
    # P(U = k) is a coefficient of the Gaussian binomial over their sum: the product of
    # (1 - q^(m + i)) / (1 - q^i) for i from 1 to n.
    chances = np.zeros(m * n + 1)
    chances[0] = 1
    for i in range(1, n + 1):
        chances[m + i :] -= chances[: len(chances) - m - i].copy()
        for first in range(i):
            chances[first::i] = np.cumsum(chances[first::i])
        chances *= i / (m + i)
    return int(np.searchsorted(np.cumsum(chances), tail, side="right"))


def outliers(values: dict[str, float], others: Sequence[float], margin: float) -> dict[str, float]:
    """Names whose value is far below the median of these values and ``others``, and by what share.

    Far means, in logarithms, since speeds differ by factors: by more than 3.5 times 1.4826 MAD, the
    standard deviation of a normal distribution (Iglewicz and Hoaglin 1993), and by more than
    ``margin``, a share of the median, since among equal nodes the MAD is almost zero.
    """
    everything = np.log([*values.values(), *others])
    median = float(np.median(everything))
    spread = 1.4826 * float(np.median(np.abs(everything - median)))
    limit = median - max(3.5 * spread, -math.log(1 - margin))
    return {
        name: 1 - value / math.exp(median)
        for name, value in values.items()
        if math.log(value) < limit
    }


class Summary(NamedTuple):
    """Figures of a measurement, in the unit of its samples."""

    median: float  # of rounds
    interval: tuple[float, float] | None
    min: float
    p95: float
    max: float
    rounds: list[float]  # median of each round


def summary(samples: Sequence[Sequence[float]]) -> Summary:
    """Figures of a measurement from its rounds' samples."""
    middles = [float(np.median(part)) for part in samples]
    everything = np.concatenate([np.asarray(part, float) for part in samples])
    return Summary(
        median=float(np.median(middles)),
        interval=interval(middles),
        min=float(everything.min()),
        p95=float(np.percentile(everything, 95)),
        max=float(everything.max()),
        rounds=middles,
    )
