"""The method of measurement, on a clock that the tests move."""

import argparse
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxway_job import measure, nvml, runtime


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


def take(call, warmup=1, repeats=1, devices=()):
    return measure.take(call, argparse.Namespace(warmup=warmup, repeats=repeats), devices)


def test_warmup_is_not_sampled(clock):
    made: list[float] = []
    call = call_lasting(clock, [60.0, 9.0, 1.0, 2.0, 3.0, 4.0], made)
    assert take(call, warmup=2, repeats=3) == {"seconds": [2.0, 3.0, 4.0], "gpu": {}}
    assert len(made) == 2 + 1 + 3


def test_short_calls_share_a_sample(clock):
    made: list[float] = []
    call = call_lasting(clock, [measure.SAMPLE / 8], made)
    assert take(call, repeats=5)["seconds"] == pytest.approx([measure.SAMPLE / 8] * 5)
    assert len(made) == pytest.approx(1 + 1 + 5 * 8, abs=5)  # a clock of floats rounds


def test_a_sample_is_the_mean_of_its_calls(clock):
    call = call_lasting(clock, [1.0, 0.0105, 0.01, 0.03], [])
    assert take(call)["seconds"] == pytest.approx([0.02])


def test_waits_for_the_devices(clock, monkeypatch):
    """The time that the host spends waiting at the end of a sample belongs to it."""

    def wait(out):
        clock.now += 5.0

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert take(call_lasting(clock, [1.0], []), repeats=2)["seconds"] == [6.0, 6.0]


@pytest.mark.parametrize(("backend", "devices", "waits"), [("cpu", 4, 5), ("cpu", 1, 1)])
def test_several_cpu_devices_are_waited_for_one_by_one(monkeypatch, backend, devices, waits):
    waited: list[Any] = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    calls = iter(range(4))
    measure.sample(lambda: next(calls), 4)
    assert len(waited) == waits
    assert waited[-1] == 3


def test_gpus_that_work_are_watched(clock, monkeypatch):
    seen: list[list[int]] = []

    class Watch:
        def __init__(self, indices):
            seen.append(indices)

        def __enter__(self):
            return {}

        def __exit__(self, *_):
            pass

    gpu = [SimpleNamespace(local_hardware_id=k, platform="gpu") for k in (2, 3)]
    monkeypatch.setattr(jax, "local_devices", lambda: gpu)
    monkeypatch.setattr(nvml, "watch", Watch)
    take(call_lasting(clock, [1.0], []))
    take(call_lasting(clock, [1.0], []), devices=gpu[1:])
    assert seen == [[2, 3], [3]]


def test_cpus_are_not_watched(clock, monkeypatch):
    """A node may have a GPU that does nothing here; its figures would mislead."""
    monkeypatch.setattr(nvml, "library", lambda: pytest.fail("asked for GPUs"))
    assert take(call_lasting(clock, [1.0], []))["gpu"] == {}


DESCRIPTION: dict[str, Any] = {"quantity": "throughput", "unit": "GB/s", "formula": "S / t"}


def test_one_measurement():
    seconds = [1.0, 2.0, 3.0, 4.0, 6.0]
    found = measure.measurement(work=12.0, seconds=seconds, check={"error": 0.0}, **DESCRIPTION)
    expected = {
        "seconds": seconds,
        "samples": [12.0, 6.0, 4.0, 3.0, 2.0],
        "higher_is_better": True,
        "check": {"error": 0.0},
    }
    assert found == DESCRIPTION | expected
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_devices_are_pooled_and_told_apart():
    seconds = [[1.0, 1.0, 1.0], [2.0, 2.0, 4.0]]
    found = measure.measurement(work=4.0, seconds=seconds, **DESCRIPTION)
    assert found["seconds"] == [1.0, 1.0, 1.0, 2.0, 2.0, 4.0]
    assert found["samples"] == [4.0, 4.0, 4.0, 2.0, 2.0, 1.0]
    assert found["per_device"] == [4.0, 2.0]


def test_devices_of_all_processes(monkeypatch):
    def gather(mine, tiled):
        assert tiled
        return np.concatenate([mine, 2 * mine])

    monkeypatch.setattr(measure.multihost_utils, "process_allgather", gather)
    found = measure.measurement(work=4.0, seconds=[[1.0], [2.0]], **DESCRIPTION)
    assert found["per_device"] == [4.0, 2.0, 2.0, 1.0]


def test_each_device(monkeypatch):
    """One after the other, and the worst check is the one of all."""
    devices = jax.local_devices() * 2
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    checks = iter([{"error": 1.0}, {"error": 3.0}])

    def on(device):
        return {"check": next(checks), "seconds": [device.id], "gpu": {}}

    found = measure.each_device(on)
    assert found == {"check": {"error": 3.0}, "seconds": [[0], [0]], "gpu": {}}


def test_check_passes_up_to_the_tolerance():
    assert measure.check("x", 0.5, 0.5) == {"error": 0.5, "tolerance": 0.5}


@pytest.mark.parametrize("error", [0.6, float("inf"), float("nan")])
def test_check_refuses(error):
    with pytest.raises(measure.WrongError, match="the sum is wrong: its error is"):
        measure.check("the sum", error, 0.5)


def test_another_process_may_have_the_worst_error(monkeypatch):
    monkeypatch.setattr(measure.multihost_utils, "process_allgather", lambda mine: [mine, 0.7])
    with pytest.raises(measure.WrongError, match=r"its error is 0\.7, but at most 0\.5 is due"):
        measure.check("the sum", 0.1, 0.5)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 1 TB")])
def test_too_large(error):
    with pytest.raises(SystemExit, match="size 9 needs more memory"), measure.memory_for("size 9"):
        raise error


def test_other_errors_are_not_called_too_large():
    with pytest.raises(RuntimeError, match="INTERNAL"), measure.memory_for("size 9"):
        raise RuntimeError("INTERNAL: something else")


def raising(error):
    def find():
        raise error

    return find


def test_a_case(capsys):
    seconds = {"samples": [1.0, 2.0, 9.0], "unit": "GB/s"}
    found = measure.case(lambda: seconds, operation="sum", size=4)
    assert found == {"case": {"operation": "sum", "size": 4}} | seconds
    assert capsys.readouterr().out == "sum 4: 2 GB/s (median of 3 samples)\n"


@pytest.mark.parametrize(
    ("find", "what", "reason"),
    [
        (lambda: measure.check("x", 2, 1), "failed", "x is wrong: its error is 2, but at most 1"),
        (raising(measure.UnsupportedError("no float8")), "skipped", "no float8"),
        (raising(MemoryError()), "failed", "it needs more memory than a device has free: "),
        (raising(ValueError("no such\nthing")), "failed", "ValueError: no such"),
        (lambda: runtime.fail("a: b"), "failed", "a: b"),
    ],
)
def test_a_case_without_a_value(capsys, find, what, reason):
    found = measure.case(find, operation="sum", size=4)
    assert list(found) == ["case", what]
    assert found[what].startswith(reason)
    assert capsys.readouterr().out == f"sum 4: {found[what]}\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("INTERNAL"), SystemExit("x: no")])
def test_of_several_processes_one_that_fails_alone_ends_the_program(monkeypatch, error):
    """The others would take its next case for the one that they are at."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match=r"4: (it needs more memory|RuntimeError: INTERNAL|no)"):
        measure.case(raising(error), size=4)
    wrong = measure.WrongError("wrong, as all know")
    assert measure.case(raising(wrong), size=4)["failed"] == "wrong, as all know"


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "1")
    measure.case(lambda: {"samples": [1.0], "unit": "s"}, size=4)
    assert capsys.readouterr().out == ""


def test_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "provenance", lambda args: {"jax": "1"})
    args = argparse.Namespace(out=tmp_path / "out.json")
    log = tmp_path / "out.json.nccl-0.log"
    log.write_text("NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read\n")
    result = {"provenance": {"jax": "1"}, "transports": {"P2P": 1}}

    def cases():
        yield {"case": 1}
        assert json.loads(args.out.read_text()) == result | {"measurements": [{"case": 1}]}
        yield {"case": 2}

    measure.write(args, cases())
    both = [{"case": 1}, {"case": 2}]
    assert json.loads(args.out.read_text()) == result | {"measurements": both}
