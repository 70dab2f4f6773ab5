"""Clocks, power, temperature and energy of GPUs while something runs, from NVIDIA's NVML.

Through ctypes, since the images hold the library but no binding of it. Functions and numbers are
those of nvml.h (NVML API Reference, "Device Queries").
"""

import contextlib
import ctypes
import statistics
import threading
from collections.abc import Iterator, Sequence
from typing import Any

INTERVAL = 0.05  # seconds between two looks
SM, TEMPERATURE_GPU = 1, 0
REASONS = {
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


class Gpu:
    """One GPU, by CUDA's number; NVML also counts those that CUDA_VISIBLE_DEVICES hides."""

    def __init__(self, nvml: Any, index: int):
        self.nvml, self.handle = nvml, ctypes.c_void_p()
        cuda, address = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(16)
        if cuda.cuDeviceGetPCIBusId(
            address, len(address), index
        ) or nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(self.handle)):
            raise OSError(f"NVML knows no GPU {index}")

    def ask(self, name: str, *arguments: int, kind: Any = ctypes.c_uint) -> int | None:
        """A number that the driver tells; None if it does not for this GPU."""
        value = kind()
        ask = getattr(self.nvml, f"nvmlDeviceGet{name}")
        return None if ask(self.handle, *arguments, ctypes.byref(value)) else value.value

    def energy(self) -> float | None:
        """Joule since the driver was loaded."""
        millijoule = self.ask("TotalEnergyConsumption", kind=ctypes.c_ulonglong)
        return None if millijoule is None else millijoule / 1000

    def look(self) -> dict[str, int | None]:
        """Figures of this moment: MHz, mW, degrees Celsius, and the bits of REASONS."""
        return {
            "clock": self.ask("ClockInfo", SM),
            "power": self.ask("PowerUsage"),
            "temperature": self.ask("Temperature", TEMPERATURE_GPU),
            "reasons": self.ask("CurrentClocksThrottleReasons", kind=ctypes.c_ulonglong),
        }


@contextlib.contextmanager
def watch(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Look at GPUs until the end of the block, which then finds a summary in what it was given.

    Lowest and median clock in MHz, median power of one GPU in W, highest temperature in degrees
    Celsius, reasons for lower clocks, and energy of all of them in J. Nothing without NVML.
    """
    found: dict[str, Any] = {}
    nvml = library() if indices else None
    if not nvml:
        yield found
        return
    gpus = [Gpu(nvml, index) for index in indices]
    looks: list[dict[str, int | None]] = []
    ended = threading.Event()

    def go_on_looking() -> None:
        while not ended.wait(INTERVAL):
            looks.extend(gpu.look() for gpu in gpus)

    before = [(gpu, gpu.energy()) for gpu in gpus]
    thread = threading.Thread(target=go_on_looking, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
    looks.extend(gpu.look() for gpu in gpus)
    seen = {key: [value for x in looks if (value := x[key]) is not None] for key in looks[0]}
    if clocks := seen["clock"]:
        found |= {"clock_mhz_min": min(clocks), "clock_mhz": statistics.median(clocks)}
    if powers := seen["power"]:
        found["power_w"] = statistics.median(powers) / 1000
    if temperatures := seen["temperature"]:
        found["temperature_c"] = max(temperatures)
    bits = 0
    for each in seen["reasons"]:
        bits |= each
    found["slowed_by"] = [reason for bit, reason in REASONS.items() if bits & bit]
    spent = [now - then for gpu, then in before if then is not None and (now := gpu.energy())]
    if len(spent) == len(gpus):
        found["energy_j"] = sum(spent)
