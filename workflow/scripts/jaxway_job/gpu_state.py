"""The state of a process's GPUs: of their memory, links and driver before JAX takes them, and what
slows them down. Each check has an outcome for the smoke test.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from jaxway_shared.smoke_test import Outcome

from jaxway_job import nvml, runtime
from jaxway_job.nvml import Gpu

Gpus: TypeAlias = Sequence[Gpu]

MAX_USED = 2e9  # bytes of a GPU that are in use before JAX starts; the driver takes less than half


def find(args: argparse.Namespace) -> list[Gpu]:
    """Those of this process. None, where NVML does not know them: the check ``devices`` tells."""
    library = nvml.library() if args.platform == "cuda" else None
    try:
        indices = runtime.process_topology(args).local_devices if library else []
        return [Gpu(library, index) for index in indices]
    except (OSError, SystemExit):
        return []


def free(gpus: Gpus) -> Outcome:
    """Memory that others have left in use would be missing."""
    used = [gpu.memory_used() or 0 for gpu in gpus]
    measured = readings(f"{each / 1e9:.1f}" for each in used)
    expected = f"at most {MAX_USED / 1e9:.0f} GB in use"
    return Outcome(f"{measured} GB in use", expected, max(used, default=0) <= MAX_USED)


def memory_errors(gpus: Gpus) -> Outcome:
    """A GPU with no row left to replace a broken one is to be replaced itself (NVIDIA GPU Memory
    Error Management, "Row Remapping"). Other errors are for who compares nodes."""
    texts, failed = [], False
    for gpu in gpus:
        ecc = {None: "ECC unknown", True: "ECC on", False: "ECC off"}[gpu.ecc_enabled()]
        corrected, uncorrected, waiting, none_left = gpu.remapped_rows() or (0, 0, 0, 0)
        failed |= bool(none_left)
        texts.append(
            f"{ecc}, {gpu.uncorrected_errors() or 0} uncorrected errors, "
            f"{corrected + uncorrected} rows remapped"
            + (", some after a reset" if waiting else "")
            + (", one could not be" if none_left else "")
        )
    return Outcome(readings(texts), "no row that could not be remapped", not failed)


def nvlink(gpus: Gpus) -> Outcome:
    """A GPU uses all of its links or, on a board without, none."""
    links = [gpu.nvlinks() for gpu in gpus]
    measured = readings(f"{sum(each)} of {len(each)} up" for each in links)
    return Outcome(measured, "all up", all(all(each) or not any(each) for each in links))


def driver(gpus: Gpus) -> Outcome:
    """A driver runs all CUDA of its major version (CUDA Compatibility, "Minor Version")."""
    found = nvml.cuda_of_driver(gpus[0].nvml) if gpus else None
    measured = f"CUDA {found // 1000}.{found % 1000 // 10}" if found else "unknown"
    image = os.environ.get("CUDA_VERSION")  # which NVIDIA's images set
    expected = f"CUDA {image}, or as new a major version" if image else "any CUDA"
    passed = not (image and found) or found // 1000 >= int(image.partition(".")[0])
    return Outcome(measured, expected, passed)


def readings(texts: Iterable[str]) -> str:
    """What GPUs report: once, if all report the same."""
    each = list(texts)
    return " / ".join(each[:1] if len({*each}) == 1 else each) or "not reported"


def clocks(telemetry: nvml.Telemetry) -> Outcome:
    """What slowed the GPUs down while they were checked; a limit of power is no fault."""
    stats = telemetry.stats
    if not stats:
        return Outcome("not reported", "not slowed down", True)
    slow = [reason for reason in stats.throttle_reasons or () if reason != "power limit"]
    measured = f"{stats.clock_mhz or 0:.0f} MHz, {stats.temperature_c} degrees Celsius"
    return Outcome(", ".join([measured, *slow]), "not slowed down", not slow)


EXCLUDE = "tell the site, and keep jobs off the node by `exclude` until then."
MEANING = {
    "free": f"Another program holds the GPU's memory, or left it in use: {EXCLUDE}",
    "memory_errors": f"The GPU's memory is broken: {EXCLUDE}",
    "nvlink": f"GPUs exchange data through fewer links, or none: {EXCLUDE}",
    "driver": "The driver is older than the image's CUDA: use an older image.",
    "clocks": f"The GPU is too hot, or lacks power: {EXCLUDE}",
}
BEFORE_JAX = (free, memory_errors, nvlink, driver)
