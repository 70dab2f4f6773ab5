"""The method of measurement, on a clock that the tests move."""

import argparse
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxway_job import measure, nvml, runtime
from jaxway_job.measure import Samples
from jaxway_shared.benchmark import BenchmarkRound, ErrorCheck, RoundCase, RoundMeasurement
from jaxway_shared.errors import UserError
from results import PROVENANCE


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; tests add to ``now``, in seconds."""
    fake = SimpleNamespace(now=100.0)
    fake.perf_counter = lambda: fake.now
    monkeypatch.setattr(measure, "time", fake)
    monkeypatch.setattr(nvml, "library", lambda: None)
    return fake


def call_lasting(clock, durations, made):
    """A call of which the n-th lasts ``durations[n]`` seconds, the later ones as the last."""

    def call():
        clock.now += durations[min(len(made), len(durations) - 1)]
        made.append(clock.now)
        return jnp.zeros(())

    return call


def collect(call, warmup=1, repeats=1, devices=()):
    return measure.collect_samples(
        call, argparse.Namespace(warmup=warmup, repeats=repeats), devices
    )


def test_warmup_is_not_sampled(clock):
    made: list[float] = []
    call = call_lasting(clock, [60.0, 9.0, 1.0, 2.0, 3.0, 4.0], made)
    assert collect(call, warmup=2, repeats=3) == Samples([2.0, 3.0, 4.0], None)
    assert len(made) == 2 + 1 + 3


def test_short_calls_share_a_sample(clock):
    made: list[float] = []
    call = call_lasting(clock, [measure.MIN_SAMPLE_S / 8], made)
    assert collect(call, repeats=5).seconds == pytest.approx([measure.MIN_SAMPLE_S / 8] * 5)
    assert len(made) == pytest.approx(1 + 1 + 5 * 8, abs=5)  # a clock of floats rounds


def test_sample_is_mean_of_its_calls(clock):
    call = call_lasting(clock, [1.0, 0.0105, 0.01, 0.03], [])
    assert collect(call).seconds == pytest.approx([0.02])


def test_sample_includes_wait_for_devices(clock, monkeypatch):
    """The time that the host spends waiting at the end of a sample belongs to it."""

    def wait(out):
        clock.now += 5.0

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert collect(call_lasting(clock, [1.0], []), repeats=2).seconds == [6.0, 6.0]


@pytest.mark.parametrize(
    ("platform", "devices", "waits"), [("cpu", 4, 5), ("cpu", 1, 1), ("gpu", 4, 1)]
)
def test_several_cpu_devices_wait_after_each_call(monkeypatch, platform, devices, waits):
    waited: list[Any] = []
    device = SimpleNamespace(platform=platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * devices)
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    calls = iter(range(4))
    measure.time_calls(lambda: next(calls), 4)
    assert len(waited) == waits
    assert waited[-1] == 3


def test_working_gpus_are_watched(clock, monkeypatch):
    seen: list[list[int]] = []

    class Collect:
        def __init__(self, indices):
            seen.append(indices)

        def __enter__(self):
            return nvml.Telemetry()

        def __exit__(self, *_):
            pass

    gpu = [SimpleNamespace(local_hardware_id=k, platform="gpu") for k in (2, 3)]
    monkeypatch.setattr(jax, "local_devices", lambda: gpu)
    monkeypatch.setattr(nvml, "collect", Collect)
    collect(call_lasting(clock, [1.0], []))
    collect(call_lasting(clock, [1.0], []), devices=gpu[1:])
    assert seen == [[2, 3], [3]]


def test_cpus_are_not_watched(clock, monkeypatch):
    """A node may have a GPU that does nothing here; its figures would mislead."""
    monkeypatch.setattr(nvml, "library", lambda: pytest.fail("asked for GPUs"))
    assert collect(call_lasting(clock, [1.0], [])).gpu is None


DESCRIPTION: dict[str, Any] = {"quantity": "throughput", "unit": "GB/s", "formula": "S / t"}


def test_one_measurement():
    samples = Samples([1.0, 2.0, 3.0, 4.0, 6.0])
    check = ErrorCheck(0.0, 1.0)
    found = measure.measurement(work=12.0, samples=samples, check=check, **DESCRIPTION)
    assert found == RoundMeasurement(
        seconds=[1.0, 2.0, 3.0, 4.0, 6.0],
        samples=[12.0, 6.0, 4.0, 3.0, 2.0],
        higher_is_better=True,
        check=check,
        **DESCRIPTION,
    )


def test_devices_are_pooled_and_kept_apart():
    samples = Samples([[1.0, 1.0, 1.0], [2.0, 2.0, 4.0]])
    found = measure.measurement(work=4.0, samples=samples, **DESCRIPTION)
    assert found.seconds == [1.0, 1.0, 1.0, 2.0, 2.0, 4.0]
    assert found.samples == [4.0, 4.0, 4.0, 2.0, 2.0, 1.0]
    assert found.per_device == [4.0, 2.0]


def test_devices_of_all_processes(monkeypatch):
    def gather(own, tiled):
        assert tiled
        return np.concatenate([own, 2 * own])

    monkeypatch.setattr(measure.multihost_utils, "process_allgather", gather)
    found = measure.measurement(work=4.0, samples=Samples([[1.0], [2.0]]), **DESCRIPTION)
    assert found.per_device == [4.0, 2.0, 2.0, 1.0]


def test_each_device(monkeypatch):
    """One after the other, and the worst check is the one of all."""
    devices = jax.local_devices() * 2
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    checks = iter([ErrorCheck(1.0, 9.0), ErrorCheck(3.0, 9.0)])
    found = measure.each_device(lambda device: (Samples([device.id]), next(checks)))
    assert found == (Samples([[0], [0]]), ErrorCheck(3.0, 9.0))


def test_check_passes_up_to_the_tolerance():
    assert measure.check("x", 0.5, 0.5) == ErrorCheck(0.5, 0.5)


@pytest.mark.parametrize("error", [0.6, float("inf"), float("nan")])
def test_check_refuses(error):
    with pytest.raises(measure.IncorrectResultError, match="the sum is wrong: error"):
        measure.check("the sum", error, 0.5)


def test_another_process_may_have_the_worst_error(monkeypatch):
    monkeypatch.setattr(measure.multihost_utils, "process_allgather", lambda own: [own, 0.7])
    with pytest.raises(measure.IncorrectResultError, match=r"error 0\.7 exceeds tolerance 0\.5"):
        measure.check("the sum", 0.1, 0.5)


RAW_HASH_MAP = "absl::container_internal::raw_hash_map<>::at"  # JAX 0.11.2, an H100
NEEDS_LOOP = f"it {measure.LOST_ATTENTION} ({RAW_HASH_MAP}) [JW318]"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), f"it {measure.TOO_LARGE}: take less [JW450]"),
        (RuntimeError("RESOURCE_EXHAUSTED: 1 TB"), f"it {measure.TOO_LARGE}: take less [JW450]"),
        (IndexError(RAW_HASH_MAP), NEEDS_LOOP),
    ],
)
def test_known_errors_are_explained(error, sentence):
    with pytest.raises(SystemExit) as end, measure.explain("it", "take less"):
        raise error
    assert str(end.value).partition(": ")[2] == sentence


@pytest.mark.parametrize("error", [RuntimeError("INTERNAL: something"), IndexError("of a list")])
def test_other_errors_are_not(error):
    with pytest.raises(type(error), match=str(error)), measure.explain("it", "take less"):
        raise error


def raising(error):
    def run():
        raise error

    return run


def test_case(capsys):
    found = measure.measurement(work=2.0, samples=Samples([2.0, 1.0, 0.5]), **DESCRIPTION)
    case: dict[str, Any] = {"operation": "sum", "size": 4}
    assert measure.run_case(lambda: found, **case) == RoundCase(case, found)
    assert capsys.readouterr().out == "sum 4: 2 GB/s (median of 3 samples)\n"


@pytest.mark.parametrize(
    ("run", "what", "reason"),
    [
        (
            lambda: measure.check("x", 2, 1),
            "failed",
            "x is wrong: error 2 exceeds tolerance 1 [JW453]",
        ),
        (raising(measure.UnsupportedError("no float8")), "skipped", "no float8"),
        (
            raising(MemoryError()),
            "failed",
            f"it {measure.TOO_LARGE}: choose a smaller value [JW450]",
        ),
        (raising(IndexError(RAW_HASH_MAP)), "failed", NEEDS_LOOP),
        (raising(ValueError("no such\nthing")), "failed", "ValueError: no such [JW451]"),
        (raising(UserError("JW452", "a: b")), "failed", "a: b [JW452]"),
    ],
)
def test_case_without_value(capsys, run, what, reason):
    found = measure.run_case(run, operation="sum", size=4)
    assert found == RoundCase({"operation": "sum", "size": 4}, **{what: reason})
    assert capsys.readouterr().out == f"sum 4: {reason}\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("INTERNAL"), UserError("JW452", "no")]
)
def test_failure_of_one_process_ends_the_program(monkeypatch, error):
    """The other processes would take its next case for the one that they are at."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match=r"4: (it needs more memory|RuntimeError: INTERNAL|no)"):
        measure.run_case(raising(error), size=4)
    wrong = measure.IncorrectResultError("wrong, as all know")
    assert measure.run_case(raising(wrong), size=4).failed == "wrong, as all know [JW453]"


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "1")
    measure.run_case(raising(measure.UnsupportedError("no")), size=4)
    assert capsys.readouterr().out == ""


def test_result_is_written_after_each_case(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "provenance", lambda args: PROVENANCE)
    args = argparse.Namespace(out=tmp_path / "out.json")
    log = tmp_path / "out.json.nccl-0.log"
    log.write_text("NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read\n")
    one, two = RoundCase({"size": 1}, skipped="no"), RoundCase({"size": 2}, failed="no")

    def cases():
        yield one
        assert BenchmarkRound.read(args.out) == BenchmarkRound(PROVENANCE, {"P2P": 1}, [one])
        yield two

    measure.write(args, cases())
    assert BenchmarkRound.read(args.out) == BenchmarkRound(PROVENANCE, {"P2P": 1}, [one, two])
