"""What NVML tells, by a library that stands in for it: two GPUs, the second in trouble."""

import argparse
import ctypes
import subprocess
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from jaxway_job import measure, nvml
from test_run_benchmarks import until

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
int missing = 0, hidden = 0, looks = 0, sm_clock = 1410;
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
    looks++;
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
    with nvml.watch(indices) as found:
        assert not found
    return found


def test_two_gpus(fake_nvml):
    fake_nvml()
    assert watched(0, 1) == {
        "clock_mhz_min": 1200,
        "clock_mhz": 1305,
        "power_w": 200,
        "temperature_c": 80,
        "slowed_by": ["thermal slowdown by hardware"],
        "energy_j": 5.0,
    }


def test_only_the_gpus_at_work(fake_nvml):
    fake_nvml()
    found = watched(0)
    assert (found["clock_mhz_min"], found["temperature_c"]) == (1410, 60)
    assert (found["slowed_by"], found["energy_j"]) == ([], 2.5)


@pytest.mark.parametrize(("bit", "reason"), nvml.REASONS.items())
def test_each_reason(fake_nvml, monkeypatch, bit, reason):
    fake_nvml()
    ask = nvml.Gpu.ask
    monkeypatch.setattr(nvml.Gpu, "ask", lambda *x, **y: bit if "Reasons" in x[1] else ask(*x, **y))
    assert watched(0)["slowed_by"] == [reason]


def test_it_looks_while_something_runs(fake_nvml):
    """A clock that is low for a moment, and as usual again at the end."""
    library = fake_nvml()
    looks, clock = (ctypes.c_int.in_dll(library, name) for name in ("looks", "sm_clock"))
    with nvml.watch([0]) as found:
        clock.value, begin = 345, looks.value
        until(lambda: looks.value >= begin + 2)  # one may have begun before the clock was low
        clock.value = 1410
    assert found["clock_mhz_min"] == 345


def test_looking_ends_also_with_an_error(fake_nvml):
    library = fake_nvml()
    with pytest.raises(ZeroDivisionError), nvml.watch([0]):
        raise ZeroDivisionError
    assert not [t for t in nvml.threading.enumerate() if "go_on_looking" in t.name]
    assert ctypes.c_int.in_dll(library, "looks").value <= 1


def test_gpus_that_are_hidden(fake_nvml):
    """CUDA_VISIBLE_DEVICES=1: what CUDA and JAX call GPU 0 is the second one of the node."""
    ctypes.c_int.in_dll(fake_nvml(), "hidden").value = 1
    assert watched(0)["temperature_c"] == 80


def test_a_gpu_that_is_not_there(fake_nvml):
    fake_nvml()
    with pytest.raises(OSError, match="NVML knows no GPU 2"):
        watched(2)


def test_a_gpu_that_does_not_tell_its_energy(fake_nvml):
    fake_nvml(energy="INDEX ? 3 : 0")
    found = watched(0, 1)
    assert "energy_j" not in found and found["clock_mhz"] == 1305


def test_no_nvml(monkeypatch):
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvml.ctypes, "CDLL", load)
    assert watched(0, 1) == {}


def test_nvml_without_a_driver(fake_nvml):
    fake_nvml(missing=9)
    assert watched(0, 1) == {}


def test_energy_of_a_call(fake_nvml, monkeypatch):
    """5 samples of 2 calls each, and 2.5 J meanwhile."""
    fake_nvml()
    monkeypatch.setattr(measure, "sample", lambda call, calls: 0.015)
    args = argparse.Namespace(warmup=1, repeats=5)
    device: Any = SimpleNamespace(platform="gpu", local_hardware_id=0)
    gpu = measure.take(lambda: jnp.zeros(()), args, [device])["gpu"]
    assert gpu["energy_j_per_call"] == 0.25 and "energy_j" not in gpu
