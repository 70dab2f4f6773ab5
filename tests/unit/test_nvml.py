"""What NVML reports, by a library that stands in for it: two GPUs, the second one throttled."""

import argparse
import ctypes
import subprocess
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from jaxway_job import measure, nvml
from jaxway_shared.benchmark import GpuStats
from test_run_benchmarks import until

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
int missing = 0, hidden = 0, polls = 0, sm_clock = 1410;
static int indices[] = {0, 1};
static long long energy[] = {5000, 9000};
#define INDEX (*(int *)device)
int nvmlInit_v2(void) { return missing; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &indices[index % 2];
    return index < 2 ? 0 : 2;
}
int cuDeviceGetPCIBusId(char *address, int length, int index) {
    return snprintf(address, length, "0000:%02x:00.0", hidden + index) != 12;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device) {
    return nvmlDeviceGetHandleByIndex_v2(strtol(address + 5, 0, 16), device);
}
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz) {
    *mhz = type == 1 ? sm_clock - 210 * INDEX : 0;
    polls++;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    *mw = INDEX ? 100000 : 300000;
    return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *c) {
    *c = sensor == 0 ? 60 + 20 * INDEX : 0;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *bits) {
    *bits = INDEX ? 0x8000000000000041 : 0x1;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = energy[INDEX] += 2500;
    return ENERGY;
}
"""


@pytest.fixture
def fake_nvml(tmp_path, monkeypatch):
    """Make the library, and have it loaded in place of NVML."""

    def make(energy="0", missing=0):
        file = tmp_path / "nvml.so"
        command = ["gcc", "-shared", "-fPIC", f"-DENERGY={energy}", "-xc", "-", "-o", file]
        subprocess.run(command, input=SOURCE, text=True, check=True)
        library = ctypes.CDLL(str(file))
        ctypes.c_int.in_dll(library, "missing").value = missing
        monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: library)
        return library

    return make


def watched(*indices):
    with nvml.collect(indices) as telemetry:
        assert telemetry == nvml.Telemetry()
    return telemetry


def test_two_gpus(fake_nvml):
    fake_nvml()
    stats = GpuStats(
        clock_mhz_min=1200,
        clock_mhz=1305,
        power_w=200,
        temperature_c=80,
        throttle_reasons=["thermal slowdown by hardware"],
    )
    assert watched(0, 1) == nvml.Telemetry(stats, energy_j=5.0)


def test_idle_gpus_are_left_out(fake_nvml):
    fake_nvml()
    found = watched(0)
    assert (found.stats.clock_mhz_min, found.stats.temperature_c) == (1410, 60)
    assert (found.stats.throttle_reasons, found.energy_j) == ([], 2.5)


@pytest.mark.parametrize(("bit", "reason"), nvml.THROTTLE_REASONS.items())
def test_each_throttle_reason(fake_nvml, monkeypatch, bit, reason):
    fake_nvml()
    query = nvml.Gpu.query
    monkeypatch.setattr(
        nvml.Gpu, "query", lambda *x, **y: bit if "Reasons" in x[1] else query(*x, **y)
    )
    assert watched(0).stats.throttle_reasons == [reason]


def test_polls_while_something_runs(fake_nvml):
    """A clock that is low for a moment, and as usual again at the end."""
    library = fake_nvml()
    polls, clock = (ctypes.c_int.in_dll(library, name) for name in ("polls", "sm_clock"))
    with nvml.collect([0]) as telemetry:
        clock.value, begin = 345, polls.value
        until(lambda: polls.value >= begin + 2)  # one poll may have begun before the clock was low
        clock.value = 1410
    assert telemetry.stats and telemetry.stats.clock_mhz_min == 345


def test_polling_ends_with_an_error(fake_nvml):
    library = fake_nvml()
    with pytest.raises(ZeroDivisionError), nvml.collect([0]):
        raise ZeroDivisionError
    assert not [t for t in nvml.threading.enumerate() if "poll_until_ended" in t.name]
    assert ctypes.c_int.in_dll(library, "polls").value <= 1


def test_hidden_gpus_keep_their_numbers(fake_nvml):
    """CUDA_VISIBLE_DEVICES=1: what CUDA and JAX call GPU 0 is the second one of the node."""
    ctypes.c_int.in_dll(fake_nvml(), "hidden").value = 1
    assert watched(0).stats.temperature_c == 80


def test_unknown_gpu_is_an_error(fake_nvml):
    fake_nvml()
    with pytest.raises(OSError, match="NVML knows no GPU 2"):
        watched(2)


def test_unknown_energy_is_left_out(fake_nvml):
    fake_nvml(energy="INDEX ? 3 : 0")
    found = watched(0, 1)
    assert found.energy_j is None and found.stats.clock_mhz == 1305


def test_no_nvml(monkeypatch):
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvml.ctypes, "CDLL", load)
    assert watched(0, 1) == nvml.Telemetry()


def test_nvml_without_a_driver(fake_nvml):
    fake_nvml(missing=9)
    assert watched(0, 1) == nvml.Telemetry()


def test_energy_per_call(fake_nvml, monkeypatch):
    """5 samples of 2 calls each, and 2.5 J meanwhile."""
    fake_nvml()
    monkeypatch.setattr(measure, "time_calls", lambda call, calls: 0.015)
    args = argparse.Namespace(warmup=1, repeats=5)
    device: Any = SimpleNamespace(platform="gpu", local_hardware_id=0)
    gpu = measure.collect_samples(lambda: jnp.zeros(()), args, [device]).gpu
    assert gpu and gpu.energy_j_per_call == 0.25
