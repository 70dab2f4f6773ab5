"""How every benchmark measures: first its check, then warm-up, then samples, which are all kept.

docs/method.md says why. A program runs one round: it measures its cases one after the other, and
one that fails does not stop the next. jaxway/run_benchmarks.py starts it again for each round.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxway_shared.benchmark import (
    BenchmarkRound,
    ErrorCheck,
    GpuStats,
    MemoryUse,
    RoundCase,
    RoundMeasurement,
)
from jaxway_shared.errors import UserError, fail, from_exit

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
TOO_LARGE = "needs more memory than a device has free"
LOST_ATTENTION = (
    "met an error of XLA, which loses the attention of all layers but one where it is to be "
    "deterministic: set `unroll: false`"
)
MIN_SAMPLE_S = 0.02  # a hundred times what a launch and a wait cost


class UnsupportedError(Exception):
    """This machine cannot do what a case asks for; the message is the reason."""


class IncorrectResultError(UserError):
    """A result is wrong, and all processes know it; the message says by how much."""

    def __init__(self, sentence: str) -> None:
        super().__init__("JW453", sentence)


class Samples(NamedTuple):
    """Seconds of one call in each sample, or those of each local device; and its GPUs meanwhile."""

    seconds: Sequence[float] | Sequence[Sequence[float]]
    gpu: GpuStats | None = None


def parser(description: str | None, options: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Command line of a benchmark: its own options, and those of all benchmarks."""
    result = runtime.parser(description or "", {**OPTIONS, **options})
    result.add_argument("--scratch", type=Path, default=Path(), help="folder for large files")
    return result


def collect_samples(
    call: Callable[[], Any], args: argparse.Namespace, devices: Sequence[jax.Device] = ()
) -> Samples:
    """Measure how long one ``call`` takes, ``repeats`` times.

    ``call`` launches work and returns the arrays that it fills. A sample is the mean of several
    calls queued one behind the other with one wait at their end, as in nccl-tests. ``devices`` are
    those at work: all local ones unless they are named.
    """
    for _ in range(args.warmup):
        jax.block_until_ready(call())
    # A collective needs the same number of calls in every process, so the first one decides.
    estimate = time_calls(call, 1)
    calls = int(multihost_utils.broadcast_one_to_all(np.int32(math.ceil(MIN_SAMPLE_S / estimate))))
    at_work = devices or jax.local_devices()
    gpus = [device.local_hardware_id for device in at_work if device.platform == "gpu"]
    with nvml.collect(gpus) as telemetry:
        seconds = [time_calls(call, calls) for _ in range(args.repeats)]
    gpu, energy = telemetry.stats, telemetry.energy_j
    if gpu and energy is not None:
        if not devices:  # all processes work on the same calls
            energy = float(np.sum(multihost_utils.process_allgather(np.float32(energy))))
        gpu = replace(gpu, energy_j_per_call=energy / (calls * args.repeats))
    return Samples(seconds, gpu)


def time_calls(call: Callable[[], Any], calls: int) -> float:
    """Mean seconds of ``calls`` calls."""
    # Queued collectives of several CPU devices of one process can wait for each other for ever.
    devices = jax.local_devices()
    one_by_one = devices[0].platform == "cpu" and len(devices) > 1
    begin = time.perf_counter()
    for _ in range(calls):
        out = call()
        if one_by_one:
            jax.block_until_ready(out)
    jax.block_until_ready(out)
    return (time.perf_counter() - begin) / calls


def check(what: str, error: float, tolerance: float) -> ErrorCheck:
    """Raise an IncorrectResultError if the worst error of all processes exceeds the tolerance."""
    worst = float(np.max(multihost_utils.process_allgather(np.float32(error))))
    if not worst <= tolerance:  # also when it is not a number
        raise IncorrectResultError(
            f"{what} is wrong: error {worst:.3g} exceeds tolerance {tolerance:.3g}"
        )
    return ErrorCheck(worst, tolerance)


def memory_use(program: Any) -> MemoryUse:
    """What a compiled program needs of a device, and what this process has taken of one so far."""
    needs = program.memory_analysis()
    compiled = needs.argument_size_in_bytes + needs.output_size_in_bytes
    compiled += needs.temp_size_in_bytes - needs.alias_size_in_bytes
    stats = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    return MemoryUse(compiled, stats.get("peak_bytes_in_use"), stats.get("bytes_limit"))


def is_oom(error: BaseException) -> bool:
    """Whether an exception says that something does not fit into memory."""
    signs = ("RESOURCE_EXHAUSTED", "Out of memory")  # the latter alone in JAX 0.4.33 on the CPU
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def explain(what: str, if_too_large: str) -> Iterator[None]:
    """End the program with a sentence where it is known why ``what`` fails."""
    try:
        yield
    except (RuntimeError, MemoryError, IndexError) as error:
        if not (reason := known_reason(error, what, if_too_large)):
            raise
        fail(reason.code, str(reason))


def known_reason(error: BaseException, what: str, if_too_large: str) -> UserError | None:
    """Why ``what`` failed, and what to do; None, that is not known."""
    if is_oom(error):
        return UserError("JW450", f"{what} {TOO_LARGE}: {if_too_large}")
    if "raw_hash_map" in str(error):  # openxla/xla, pull request 46500
        return UserError("JW318", f"{what} {LOST_ATTENTION} ({runtime.first_line(error)})")
    return None


def as_user_error(error: BaseException) -> UserError:
    """Why a case failed, as a sentence with a code."""
    if isinstance(error, UserError):
        return error
    if reason := known_reason(error, "it", "choose a smaller value"):
        return reason
    if isinstance(error, SystemExit):
        return from_exit(error)
    return UserError("JW451", f"{type(error).__name__}: {runtime.first_line(error)}")


def run_case(measure: Callable[[], RoundMeasurement], **case: Any) -> RoundCase:
    """Measure one case, which ``case`` names; process 0 prints the result in one line.

    Of several processes, which must do the same all the time, one that fails for a reason of its
    own ends the program.
    """
    name = " ".join(str(value) for value in case.values())
    try:
        measured = measure()
    except UnsupportedError as error:
        result = RoundCase(case, skipped=str(error))
    except (Exception, SystemExit) as error:
        reason = as_user_error(error)
        if jax.process_count() > 1 and not isinstance(error, IncorrectResultError):
            fail(reason.code, f"{name}: {reason}")
        result = RoundCase(case, failed=reason.line())
    else:
        result = RoundCase(case, measured)
    if runtime.first_process():
        print(f"{name}: {result.skipped or result.failed or summary(measured)}", flush=True)
    return result


def summary(measured: RoundMeasurement) -> str:
    """The median of a round, with its unit."""
    middle, count = np.median(measured.samples), len(measured.samples)
    return f"{middle:.4g} {measured.unit} (median of {count} samples)"


def measurement(
    *,
    quantity: str,
    unit: str,
    formula: str,
    work: float,
    samples: Samples,
    higher_is_better: bool = True,
    **more: Any,
) -> RoundMeasurement:
    """A measurement whose values are ``work / seconds``, in ``unit``.

    ``more`` are other fields of a measurement, such as ``check``.
    """
    times = np.asarray(samples.seconds)
    if times.ndim == 2:
        times = np.asarray(multihost_utils.process_allgather(times, tiled=True))
        more["per_device"] = np.median(work / times, axis=1).tolist()
    return RoundMeasurement(
        quantity=quantity,
        unit=unit,
        higher_is_better=higher_is_better,
        formula=formula,
        seconds=times.ravel().tolist(),
        samples=(work / times).ravel().tolist(),
        gpu=samples.gpu,
        **more,
    )


def each_device(
    measure: Callable[[jax.Device], tuple[Samples, ErrorCheck]],
) -> tuple[Samples, ErrorCheck]:
    """Measure on each local device alone, one after the other, so that a slow one shows.

    Samples are those of each device, the check is the worst one, and GPU figures are the first's.
    """
    samples, stats, checks = [], [], []
    for device in jax.local_devices():
        with jax.default_device(device):
            measured, checked = measure(device)
        samples.append(np.ravel(measured.seconds).tolist())
        stats.append(measured.gpu)
        checks.append(checked)
    worst = max(checks, key=lambda check: check.error)
    return Samples(samples, stats[0]), worst


def write(args: argparse.Namespace, cases: Iterable[RoundCase]) -> None:
    """Write the result of a round, anew after each case: whatever ends the program leaves those."""
    provenance, finished = runtime.provenance(args), list[RoundCase]()
    for case in cases:
        finished.append(case)
        transports = nccl_log.count_channels(args.out)
        runtime.write_json(args.out, BenchmarkRound(provenance, transports, finished).to_json())
