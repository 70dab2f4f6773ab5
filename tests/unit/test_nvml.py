"""What NVML reports, and what the smoke test makes of it, by a library that stands in for NVML: two
GPUs, the second one throttled.
"""

import argparse
import ctypes
import subprocess
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from jaxway_job import gpu_state, measure, nvml
from jaxway_shared.benchmark import GpuStats
from jaxway_shared.smoke_test import Outcome
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
int used_gb = 1, none_left = 0, links_up = 12, cuda = 12060, unsupported = 0;
int cuInit(unsigned flags) { return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = cuda; return unsupported; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *total_free_used) {
    total_free_used[2] = 1000000000ull * (INDEX ? used_gb : 1);
    return unsupported;
}
int nvmlDeviceGetEccMode(void *device, unsigned *now, unsigned *pending) {
    *now = 1; *pending = 0;
    return unsupported;
}
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int since, unsigned long long *count) {
    *count = kind == 1 && since == 0 ? 3 * INDEX : 99;
    return unsupported;
}
int nvmlDeviceGetRemappedRows(
    void *device, unsigned *corrected, unsigned *not, unsigned *waiting, unsigned *failed
) {
    *corrected = INDEX; *not = INDEX; *waiting = INDEX; *failed = INDEX * none_left;
    return unsupported;
}
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *up) {
    *up = link < links_up || !INDEX;
    return unsupported || link >= 12 ? 3 : 0;
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


# ---------------------------------------------------------------------- what the smoke test checks


@pytest.fixture
def state(fake_nvml, monkeypatch):
    """Outcomes of the checks, by name, where the second GPU has what is given."""
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    monkeypatch.setenv("CUDA_VERSION", "12.6.2.004")  # as NVIDIA's image of October 2024 has it

    def check(devices=2, **values):
        library = fake_nvml()
        for name, value in values.items():
            ctypes.c_int.in_dll(library, name).value = value
        gpus = gpu_state.find(argparse.Namespace(platform="cuda", devices=devices))
        return {each.__name__: each(gpus) for each in gpu_state.BEFORE_JAX}

    return check


def test_state_of_sound_gpus(state):
    assert state() == {
        "free": Outcome("1.0 GB in use", "at most 2 GB in use", True),
        "memory_errors": Outcome(
            "ECC on, 0 uncorrected errors, 0 rows remapped / "
            "ECC on, 3 uncorrected errors, 2 rows remapped, some after a reset",
            "no row that could not be remapped",
            True,
        ),
        "nvlink": Outcome("12 of 12 up", "all up", True),
        "driver": Outcome("CUDA 12.6", "CUDA 12.6.2.004, or as new a major version", True),
    }


@pytest.mark.parametrize(
    ("check", "values", "measured"),
    [
        ("free", {"used_gb": 3}, "1.0 / 3.0 GB in use"),
        (
            "memory_errors",
            {"none_left": 1},
            "2 rows remapped, some after a reset, one could not be",
        ),
        ("nvlink", {"links_up": 11}, "12 of 12 up / 11 of 12 up"),
        ("driver", {"cuda": 11080}, "CUDA 11.8"),
    ],
)
def test_state_of_a_gpu_that_is_not(state, check, values, measured):
    found = state(**values)
    assert [name for name, outcome in found.items() if not outcome.passed] == [check]
    assert found[check].measured.endswith(measured)
    assert check in gpu_state.MEANING


def test_gpus_without_links_between_them(state):
    assert state(links_up=0)["nvlink"] == Outcome("12 of 12 up / 0 of 12 up", "all up", True)


@pytest.mark.parametrize("values", [{"unsupported": 3}, {"missing": 9}, {"devices": 3}])
def test_what_nvml_does_not_report_is_no_failure(state, values):
    assert all(outcome.passed for outcome in state(**values).values())


def test_newer_cuda_than_the_drivers(state, monkeypatch):
    monkeypatch.setenv("CUDA_VERSION", "13.0.1")
    assert not state()["driver"].passed


def test_slow_gpus_fail_the_smoke_test(fake_nvml):
    fake_nvml()
    assert gpu_state.clocks(watched(0)) == Outcome(
        "1410 MHz, 60 degrees Celsius", "not slowed down", True
    )
    slow = gpu_state.clocks(watched(0, 1))
    assert slow.measured == "1305 MHz, 80 degrees Celsius, thermal slowdown by hardware"
    assert not slow.passed
    assert gpu_state.clocks(nvml.Telemetry()).passed
    stats = GpuStats(None, 1100, None, 60, ["power limit"])
    assert gpu_state.clocks(nvml.Telemetry(stats)).passed
