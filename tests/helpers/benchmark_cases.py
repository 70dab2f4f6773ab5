"""What the tests of the benchmark programs share."""

from typing import Any

import benchmark_collective
import numpy as np
import pytest

QUICK = ["--platform=cpu", "--warmup=1", "--repeats=3"]
OPERATIONS: Any = benchmark_collective.OPTIONS["operations"]["default"]


def cases(result):
    """Cases by their values, after what holds for all of them."""
    assert result.provenance.devices == result.provenance.arguments["devices"]
    for found in result.cases:
        reasons = [x for x in (found.measurement, found.failed, found.skipped) if x is not None]
        assert len(reasons) == 1
        if found.measurement and (check := found.measurement.check):
            assert check.error <= check.tolerance
    return {tuple(found.case.values()): found for found in result.cases}


def measurements(result):
    """Measurements of the cases that have one, by the values of the cases."""
    found = cases(result).items()
    return {key: case.measurement for key, case in found if case.measurement}


def work(found):
    """The work that gives each sample in its unit."""
    products = np.multiply(found.samples, found.seconds)
    assert np.ptp(products) <= 1e-6 * products.max()
    return pytest.approx(products.mean(), rel=1e-5)
