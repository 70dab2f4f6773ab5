"""How every benchmark measures: first its check, then warm-up, then samples, which are all kept.

docs/method.md says why. A program takes one round: it measures its cases one after the other, and
one that fails does not stop the next. run_benchmarks.py starts it again for each round.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxway_job import nccl_log, nvml, runtime

OPTIONS = {
    "warmup": {
        "type": "integer",
        "minimum": 1,
        "default": 3,
        "description": "calls before the first sample; the first of them compiles",
    },
    "repeats": {
        "type": "integer",
        "minimum": 1,
        "default": 20,
        "description": "samples to take in each round",
    },
}
TOO_LARGE = "needs more memory than a device has free: choose a smaller value"
SAMPLE = 0.02  # seconds a sample lasts at least: a hundred times what a launch and a wait cost

Measurement = dict[str, Any]


class UnsupportedError(Exception):
    """This machine cannot do what a case asks for; the message says why."""


class WrongError(Exception):
    """A result is wrong, as all processes know; the message says by how much."""


def parser(description: str, options: Measurement) -> argparse.ArgumentParser:
    """Command line of a benchmark: its own options, and what all of them take."""
    result = runtime.parser(description, OPTIONS | options)
    result.add_argument("--scratch", type=Path, default=Path(), help="folder for large files")
    return result


def take(call: Callable[[], Any], args: argparse.Namespace, devices: Sequence[jax.Device] = ()):
    """Samples of the seconds that one ``call`` takes, and what the GPUs told meanwhile.

    ``call`` launches work and returns the arrays that it fills. A sample is the mean of several
    calls queued one behind the other with one wait at their end, as in nccl-tests. ``devices`` are
    those at work: all local ones unless they are named.
    """
    for _ in range(args.warmup):
        jax.block_until_ready(call())
    # A collective needs the same number of calls in every process, so the first one decides.
    estimate = sample(call, 1)
    calls = int(multihost_utils.broadcast_one_to_all(np.int32(math.ceil(SAMPLE / estimate))))
    at_work = devices or jax.local_devices()
    gpus = [device.local_hardware_id for device in at_work if device.platform == "gpu"]
    with nvml.watch(gpus) as gpu:
        seconds = [sample(call, calls) for _ in range(args.repeats)]
    if "energy_j" in gpu:
        energy = np.float32(gpu.pop("energy_j"))
        if not devices:  # all processes work on the same calls
            energy = np.sum(multihost_utils.process_allgather(energy))
        gpu["energy_j_per_call"] = float(energy) / (calls * args.repeats)
    return {"seconds": seconds, "gpu": gpu}


def sample(call: Callable[[], Any], calls: int) -> float:
    """Mean seconds of ``calls`` calls."""
    # Queued collectives of several CPU devices of one process can wait for each other for ever.
    one_by_one = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    begin = time.perf_counter()
    for _ in range(calls):
        out = call()
        if one_by_one:
            jax.block_until_ready(out)
    jax.block_until_ready(out)
    return (time.perf_counter() - begin) / calls


def check(what: str, error: float, tolerance: float) -> dict[str, float]:
    """Raise a WrongError if the worst error of all processes is above the tolerance."""
    worst = float(np.max(multihost_utils.process_allgather(np.float32(error))))
    if not worst <= tolerance:  # also when it is not a number
        raise WrongError(
            f"{what} is wrong: its error is {worst:.3g}, but at most {tolerance:.3g} is due"
        )
    return {"error": worst, "tolerance": tolerance}


def memory_lacks(error: BaseException) -> bool:
    """Whether an exception says that something does not fit into memory."""
    signs = ("RESOURCE_EXHAUSTED", "Out of memory")  # the latter alone in JAX 0.4.33 on the CPU
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def memory_for(what: str) -> Iterator[None]:
    """End the program with a sentence if ``what`` does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_lacks(error):
            raise
        runtime.fail(f"{what} {TOO_LARGE}")


def reason(error: BaseException) -> str:
    """Why a case failed, as a sentence."""
    if memory_lacks(error):
        return f"it {TOO_LARGE}"
    if isinstance(error, SystemExit):
        return str(error.code).partition(": ")[2]
    return f"{type(error).__name__}: {runtime.first_line(error)}"


def case(find: Callable[[], Measurement], **labels: Any) -> Measurement:
    """Take one measurement, of the case that the labels name; process 0 prints it in one line.

    One that fails gives its reason as ``failed``, one that this machine cannot do as ``skipped``.
    Of several processes, which must do the same all the time, one that fails for a reason of its
    own ends the program.
    """
    name = " ".join(str(value) for value in labels.values())
    try:
        measured = find()
    except UnsupportedError as error:
        measured = {"skipped": str(error)}
    except WrongError as error:
        measured = {"failed": str(error)}
    except (Exception, SystemExit) as error:
        if jax.process_count() > 1:
            runtime.fail(f"{name}: {reason(error)}")
        measured = {"failed": reason(error)}
    if runtime.first_process():
        said = measured.get("skipped") or measured.get("failed")
        if not said:
            values = measured["samples"]
            said = f"{np.median(values):.4g} {measured['unit']} (median of {len(values)} samples)"
        print(f"{name}: {said}", flush=True)
    return {"case": labels} | measured


def measurement(
    *,
    quantity: str,
    unit: str,
    formula: str,
    work: float,
    seconds: Any,
    higher_is_better: bool = True,
    **more: Any,
) -> Measurement:
    """What all measurements have in common.

    ``seconds`` are the samples or, if each device was measured alone, those of each local device;
    ``work / seconds`` is in ``unit``.
    """
    times = np.asarray(seconds)
    if times.ndim == 2:
        times = np.asarray(multihost_utils.process_allgather(times, tiled=True))
        more["per_device"] = np.median(work / times, axis=1).tolist()
    return {
        "quantity": quantity,
        "unit": unit,
        "higher_is_better": higher_is_better,
        "formula": formula,
        "seconds": times.ravel().tolist(),
        "samples": (work / times).ravel().tolist(),
        **more,
    }


def each_device(measure: Callable[[jax.Device], Measurement]) -> Measurement:
    """What ``measure`` finds on each local device, one after the other, so that a slow one shows.

    The check is the worst one, and the GPU's figures are those of the first.
    """
    found = []
    for device in jax.local_devices():
        with jax.default_device(device):
            found.append(measure(device))
    worst = max((each["check"] for each in found), key=lambda check: check["error"])
    return found[0] | {"check": worst, "seconds": [each["seconds"] for each in found]}


def write(args: argparse.Namespace, cases: Iterable[Measurement]) -> None:
    """Write the result of a round, anew after each case: whatever ends the program leaves those."""
    provenance, found = runtime.provenance(args).to_json(), []
    for each in cases:
        found.append(each)
        transports = nccl_log.taken(args.out)
        result = {"provenance": provenance, "transports": transports, "measurements": found}
        runtime.write_json(args.out, result)
