"""How every benchmark measures: first its check, then warm-up, then samples, which are all kept."""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import harness
import jax
import numpy as np
from jax.experimental import multihost_utils

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
        "default": 10,
        "description": "samples to take",
    },
}
SAMPLE = 0.02  # seconds a sample lasts at least: a hundred times what a launch and a wait cost


def seconds(call: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
    """Seconds that one ``call`` takes, in ``repeats`` samples.

    ``call`` launches work and returns the arrays that it fills. A sample is the mean of several
    calls queued one behind the other with one wait at their end, as in nccl-tests.
    """
    for _ in range(warmup):
        jax.block_until_ready(call())
    # A collective needs the same number of calls in every process, so the first one decides.
    estimate = sample(call, 1)
    calls = int(multihost_utils.broadcast_one_to_all(np.int32(math.ceil(SAMPLE / estimate))))
    return [sample(call, calls) for _ in range(repeats)]


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
    """End the program if the worst error of all processes is above the tolerance."""
    worst = float(np.max(multihost_utils.process_allgather(np.float32(error))))
    if not worst <= tolerance:  # also when it is not a number
        harness.fail(
            f"{what} is wrong: its error is {worst:.3g}, but at most {tolerance:.3g} is due"
        )
    return {"error": worst, "tolerance": tolerance}


@contextlib.contextmanager
def memory_for(what: str) -> Iterator[None]:
    """End the program with a sentence if ``what`` does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        signs = ("RESOURCE_EXHAUSTED", "Out of memory")  # the latter alone in JAX 0.4.33 on the CPU
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in signs):
            raise
        harness.fail(f"{what} needs more memory than a device has free: choose a smaller value")


def result(
    args: argparse.Namespace,
    *,
    benchmark: str,
    quantity: str,
    unit: str,
    formula: str,
    work: float,
    checks: Sequence[dict[str, float]],
    seconds: Sequence[float] | Sequence[Sequence[float]],
    **more: Any,
) -> dict[str, Any]:
    """Result with what all benchmarks have in common; process 0 prints it in one line.

    ``seconds`` are the samples or, if each device was measured alone, those of each local device;
    ``work / seconds`` is in ``unit``. ``iqr`` is the interquartile range, in ``unit`` too.
    """
    times = np.asarray(seconds)
    if times.ndim == 2:
        times = np.asarray(multihost_utils.process_allgather(times, tiled=True))
        more["median_per_device"] = np.median(work / times, axis=1).tolist()
    values = work / times.ravel()
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    if harness.first_process():
        print(
            f"{benchmark}: {quantity} {median:.4g} {unit} (median of {values.size} samples from "
            f"{values.min():.4g} to {values.max():.4g}, IQR {(high - low) / median:.1%})"
        )
    return {
        "provenance": harness.provenance(args),
        "benchmark": benchmark,
        "quantity": quantity,
        "unit": unit,
        "higher_is_better": True,
        "formula": formula,
        "check": max(checks, key=lambda check: check["error"]),
        "seconds": times.ravel().tolist(),
        "samples": values.tolist(),
        "min": values.min().item(),
        "median": median,
        "max": values.max().item(),
        "iqr": high - low,
        **more,
    }
