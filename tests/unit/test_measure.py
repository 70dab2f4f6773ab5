"""The method of measurement, on a clock that the tests move."""

import argparse
import json
from types import SimpleNamespace
from typing import Any

import harness
import jax
import jax.numpy as jnp
import measure
import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; tests add to ``now``, in seconds."""
    fake = SimpleNamespace(now=100.0)
    fake.perf_counter = lambda: fake.now
    monkeypatch.setattr(measure, "time", fake)
    return fake


def call_lasting(clock, durations, made):
    """A call of which the n-th lasts ``durations[n]`` seconds, the later ones as the last."""

    def call():
        clock.now += durations[min(len(made), len(durations) - 1)]
        made.append(clock.now)
        return jnp.zeros(())

    return call


def test_warmup_is_not_sampled(clock):
    made: list[float] = []
    call = call_lasting(clock, [60.0, 9.0, 1.0, 2.0, 3.0, 4.0], made)
    assert measure.seconds(call, warmup=2, repeats=3) == [2.0, 3.0, 4.0]
    assert len(made) == 2 + 1 + 3


def test_short_calls_share_a_sample(clock):
    made: list[float] = []
    call = call_lasting(clock, [measure.SAMPLE / 8], made)
    assert measure.seconds(call, warmup=1, repeats=5) == pytest.approx([measure.SAMPLE / 8] * 5)
    assert len(made) == pytest.approx(1 + 1 + 5 * 8, abs=5)  # a clock of floats rounds


def test_waits_for_the_devices(clock, monkeypatch):
    """The time that the host spends waiting at the end of a sample belongs to it."""

    def wait(out):
        clock.now += 5.0

    monkeypatch.setattr(jax, "block_until_ready", wait)
    call = call_lasting(clock, [1.0], [])
    assert measure.seconds(call, warmup=1, repeats=2) == [6.0, 6.0]


DESCRIPTION: dict[str, Any] = {
    "benchmark": "b",
    "quantity": "throughput",
    "unit": "GB/s",
    "formula": "S / t",
    "checks": [{"error": 1.0, "tolerance": 3.0}, {"error": 2.0, "tolerance": 3.0}],
}


@pytest.fixture
def no_provenance(monkeypatch):
    monkeypatch.setattr(harness, "provenance", lambda args: {"arguments": vars(args)})


def test_statistics(no_provenance, capsys):
    args = argparse.Namespace(size=1)
    result = measure.result(args, work=12.0, seconds=[1.0, 2.0, 3.0, 4.0, 6.0], **DESCRIPTION)
    assert result["seconds"] == [1.0, 2.0, 3.0, 4.0, 6.0]
    assert result["samples"] == [12.0, 6.0, 4.0, 3.0, 2.0]
    expected = {"min": 2.0, "median": 4.0, "max": 12.0, "iqr": 3.0}
    assert {key: result[key] for key in expected} == expected
    assert result["check"] == {"error": 2.0, "tolerance": 3.0}
    assert result["higher_is_better"] is True
    assert result["provenance"] == {"arguments": {"size": 1}}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    line = "b: throughput 4 GB/s (median of 5 samples from 2 to 12, IQR 75.0%)\n"
    assert capsys.readouterr().out == line


def test_devices_are_pooled_and_told_apart(no_provenance):
    seconds = [[1.0, 1.0, 1.0], [2.0, 2.0, 4.0]]
    result = measure.result(argparse.Namespace(), work=4.0, seconds=seconds, **DESCRIPTION)
    assert result["samples"] == [4.0, 4.0, 4.0, 2.0, 2.0, 1.0]
    assert result["median_per_device"] == [4.0, 2.0]
    assert result["median"] == 3.0


def test_check_passes_up_to_the_tolerance():
    assert measure.check("x", 0.5, 0.5) == {"error": 0.5, "tolerance": 0.5}


@pytest.mark.parametrize("error", [0.6, float("inf"), float("nan")])
def test_check_ends_the_program(error):
    with pytest.raises(SystemExit, match="the sum is wrong: its error is"):
        measure.check("the sum", error, 0.5)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 1 TB")])
def test_too_large(error):
    with pytest.raises(SystemExit, match="size 9 needs more memory"), measure.memory_for("size 9"):
        raise error


def test_other_errors_are_not_called_too_large():
    with pytest.raises(RuntimeError, match="INTERNAL"), measure.memory_for("size 9"):
        raise RuntimeError("INTERNAL: something else")
