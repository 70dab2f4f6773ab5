"""Faults that pass or stay: what is downloaded again, how often, and what a failure leaves."""

import re
from collections import Counter

import pytest
from pulls import FOREVER, Target


@pytest.mark.parametrize("path", ["/manifests/latest", "third"])
def test_waits_as_long_as_the_registry_asks(target: Target, path: str) -> None:
    fault = target.fault(path, status=429, headers={"Retry-After": "3"}, times=1)
    target.registry.faults(fault)
    target.start().succeed()
    target.check_sif()
    first, second, *_ = [x for x in target.log() if re.search(fault["path"], x["path"])]
    assert (first["status"], second["status"]) == (429, 200)
    assert second["time"] - first["time"] >= 3


def test_two_server_errors_are_survived(target: Target) -> None:
    target.registry.faults(target.fault("/manifests/", status=500, times=2))
    target.start().succeed()
    target.check_sif()
    assert [x["status"] for x in target.log()][:3] == [500, 500, 200]


def test_reset_layer_begins_anew_where_the_registry_knows_no_ranges(target: Target) -> None:
    cut = target.fault("third", cut=5_000_000, times=1)
    target.registry.faults(target.fault("third", whole=True), cut)
    target.start().succeed()
    target.check_sif()
    assert [x["status"] for x in target.gets()] == [200] * 4


def test_reset_layer_goes_on_where_it_stopped(target: Target) -> None:
    target.registry.faults(target.fault("third", cut=5_000_000, times=1))
    target.start().succeed()
    target.check_sif()
    first, second = [x for x in target.gets() if x["path"].endswith(target.registry.layers[-1])]
    assert (first["range"], second["status"]) == (None, 206)
    assert int(second["range"].removeprefix("bytes=").removesuffix("-")) >= 4_000_000
    assert len(target.gets()) == 4


def test_damaged_layer_is_fetched_again(target: Target) -> None:
    target.registry.faults(target.fault("third", corrupt=True, times=1))
    target.start().succeed()
    target.check_sif()
    paths = Counter(x["path"].rpartition("/")[2] for x in target.gets())
    assert [paths[x] for x in target.registry.layers] == [1, 1, 2]


@pytest.mark.parametrize("name", FOREVER)
def test_fault_that_stays_ends_the_pull(forever: dict[str, Target], name: str) -> None:
    target = forever[name]
    kept = target.check_leftovers()
    assert kept == ({*target.registry.layers[:2]} if name != "error" else set())
    target.pull_again(kept)


def test_layer_arrives_over_a_line_that_breaks_often(target: Target) -> None:
    """More often than a pull tries in vain: each time some more of it is here."""
    target.registry.faults(target.fault("third", cut=2_000_000))
    target.start().succeed()
    target.check_sif()
    assert len(target.gets()) > 3 + 5
