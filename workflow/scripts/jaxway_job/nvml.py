"""What NVIDIA's NVML reports of GPUs: their state, and clocks, power, temperature and energy while
something runs.

Through ctypes, since the images hold the library but no binding of it. Functions and numbers are
those of nvml.h (NVML API Reference, "Device Queries" and "NvLink Methods").
"""

import contextlib
import ctypes
import statistics
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxway_shared.benchmark import GpuStats

POLL_INTERVAL_S = 0.05
SM, TEMPERATURE_GPU = 1, 0
UNCORRECTED, SINCE_START = 1, 0  # of errors of memory: their kind, and when they are counted from
MAX_LINKS = 18
THROTTLE_REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}


def library() -> Any:
    """NVML, ready for use; None on a machine without."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml


def cuda_of_driver(nvml: Any) -> int | None:
    """The newest CUDA that the driver can run, as 12060 for 12.6; None, it does not say."""
    version = ctypes.c_int()
    failed = nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
    return None if failed else version.value


class Gpu:
    """One GPU, by CUDA's number; NVML also counts those that CUDA_VISIBLE_DEVICES hides."""

    def __init__(self, nvml: Any, index: int):
        self.nvml, self.index, self.handle = nvml, index, ctypes.c_void_p()
        cuda, address = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(16)
        cuda.cuInit(0)  # takes no memory of a GPU
        if cuda.cuDeviceGetPCIBusId(
            address, len(address), index
        ) or nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(self.handle)):
            raise OSError(f"NVML knows no GPU {index}")

    def query(self, name: str, *arguments: int, kind: Any = ctypes.c_uint) -> int | None:
        """A number that the driver reports; None if it does not for this GPU."""
        found = self.queries(name, *arguments, kinds=(kind,))
        return found[0] if found else None

    def queries(self, name: str, *arguments: int, kinds: Sequence[Any]) -> list[int] | None:
        """Several numbers that one function reports."""
        values = [kind() for kind in kinds]
        get = getattr(self.nvml, f"nvmlDeviceGet{name}", None)  # not in an older library
        failed = not get or get(self.handle, *arguments, *map(ctypes.byref, values))
        return None if failed else [int(value.value) for value in values]

    def memory_used(self) -> int | None:
        """Bytes, of all programs and of the driver."""
        total_free_used = (ctypes.c_ulonglong * 3)()
        failed = self.nvml.nvmlDeviceGetMemoryInfo(self.handle, total_free_used)
        return None if failed else total_free_used[2]

    def ecc_enabled(self) -> bool | None:
        """Whether errors of memory are corrected."""
        now_and_after_reset = self.queries("EccMode", kinds=(ctypes.c_uint,) * 2)
        return bool(now_and_after_reset[0]) if now_and_after_reset else None

    def uncorrected_errors(self) -> int | None:
        """Errors of memory since the driver was loaded that could not be corrected."""
        kind = ctypes.c_ulonglong
        return self.query("TotalEccErrors", UNCORRECTED, SINCE_START, kind=kind)

    def remapped_rows(self) -> list[int] | None:
        """Rows of memory that others replace after errors that were, and were not, corrected;
        whether some wait for a reset; and whether ever there was none left to replace one."""
        return self.queries("RemappedRows", kinds=(ctypes.c_uint,) * 4)

    def nvlinks(self) -> list[bool]:
        """Of each NVLink, whether it is up."""
        states = (self.query("NvLinkState", link) for link in range(MAX_LINKS))
        return [bool(state) for state in states if state is not None]

    def energy(self) -> float | None:
        """Joule since the driver was loaded."""
        millijoule = self.query("TotalEnergyConsumption", kind=ctypes.c_ulonglong)
        return None if millijoule is None else millijoule / 1000

    def poll(self) -> dict[str, int | None]:
        """Figures of this moment: MHz, mW, degrees Celsius, and the bits of THROTTLE_REASONS."""
        return {
            "clock": self.query("ClockInfo", SM),
            "power": self.query("PowerUsage"),
            "temperature": self.query("Temperature", TEMPERATURE_GPU),
            "throttle": self.query("CurrentClocksThrottleReasons", kind=ctypes.c_ulonglong),
        }


@dataclass
class Telemetry:
    """What GPUs reported while they were polled. None: no NVML, or not reported by all GPUs."""

    stats: GpuStats | None = None
    energy_j: float | None = None


@contextlib.contextmanager
def collect(indices: Sequence[int]) -> Iterator[Telemetry]:
    """Poll GPUs until the end of the block, after which the telemetry is filled."""
    telemetry = Telemetry()
    nvml = library() if indices else None
    if not nvml:
        yield telemetry
        return
    gpus = [Gpu(nvml, index) for index in indices]
    readings: list[dict[str, int | None]] = []
    ended = threading.Event()

    def poll_until_ended() -> None:
        while not ended.wait(POLL_INTERVAL_S):
            readings.extend(gpu.poll() for gpu in gpus)

    before = [(gpu, gpu.energy()) for gpu in gpus]
    thread = threading.Thread(target=poll_until_ended, daemon=True)
    thread.start()
    try:
        yield telemetry
    finally:
        ended.set()
        thread.join()
    readings.extend(gpu.poll() for gpu in gpus)
    telemetry.stats = summarize(readings)
    spent = [now - then for gpu, then in before if then is not None and (now := gpu.energy())]
    if len(spent) == len(gpus):
        telemetry.energy_j = sum(spent)


def summarize(readings: Sequence[dict[str, int | None]]) -> GpuStats:
    """What several readings say together."""
    known = {key: [x for each in readings if (x := each[key]) is not None] for key in readings[0]}
    clocks, powers, temperatures = known["clock"], known["power"], known["temperature"]
    bits = 0
    for each in known["throttle"]:
        bits |= each
    return GpuStats(
        clock_mhz_min=min(clocks) if clocks else None,
        clock_mhz=statistics.median(clocks) if clocks else None,
        power_w=statistics.median(powers) / 1000 if powers else None,
        temperature_c=max(temperatures) if temperatures else None,
        throttle_reasons=[reason for bit, reason in THROTTLE_REASONS.items() if bits & bit],
    )
