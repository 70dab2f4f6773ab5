"""Faults that pass or stay: what is downloaded again, how often, and what a failure leaves."""

from collections import Counter

import pytest
from jaxway.container.registry import BACKOFF_S


@pytest.mark.parametrize("path", ["/manifests/latest", "third"])
def test_waits_as_long_as_the_registry_asks(target, path):
    limit = {"status": 429, "headers": {"Retry-After": "30"}}
    target.registry.faults(target.fault(path, **limit, times=1))
    target.pull()
    assert target.clock.pauses == [30]


def test_two_server_errors_are_survived(target):
    target.registry.faults(target.fault("/manifests/", status=500, times=2))
    target.pull()
    assert [x["status"] for x in target.log()][:3] == [500, 500, 200]
    assert target.clock.pauses == [*BACKOFF_S[:2]]


def test_reset_layer_begins_anew_where_the_registry_knows_no_ranges(target):
    cut = target.fault("third", cut=5_000_000, times=1)
    target.registry.faults(target.fault("third", whole=True), cut)
    target.pull()
    assert [x["status"] for x in target.gets()] == [200] * 4


def test_reset_layer_goes_on_where_it_stopped(target):
    target.registry.faults(target.fault("third", cut=5_000_000, times=1))
    target.pull()
    first, second = [x for x in target.gets() if x["path"].endswith(target.registry.layers[-1])]
    assert (first["range"], second["status"]) == (None, 206)
    assert int(second["range"].removeprefix("bytes=").removesuffix("-")) >= 4_000_000
    assert len(target.gets()) == 4


def test_damaged_layer_is_fetched_again(target):
    target.registry.faults(target.fault("third", corrupt=True, times=1))
    target.pull()
    paths = Counter(x["path"].rpartition("/")[2] for x in target.gets())
    assert [paths[x] for x in target.registry.layers] == [1, 1, 2]


@pytest.mark.parametrize(
    ("fault", "reason", "keeps"),
    [
        ({"status": 500}, "status 500", 0),
        ({"path": "third", "cut": 0}, "connection", 2),
        ({"path": "third", "corrupt": True}, "damaged", 2),
    ],
    ids=["error", "reset", "damage"],
)
def test_fault_that_stays_ends_the_pull(target, fault, reason, keeps):
    target.registry.faults(target.fault(**fault))
    target.refused(f"localhost:.*{reason}.*, 5 times; try again later", keeps=keeps)
    assert target.clock.pauses == [*BACKOFF_S]


def test_layer_arrives_over_a_line_that_breaks_often(target):
    """More often than a pull tries in vain: each time some more of it is here."""
    target.registry.faults(target.fault("third", cut=2_000_000))
    target.pull()
    assert len(target.gets()) > 3 + len(BACKOFF_S) + 1
