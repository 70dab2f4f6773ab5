"""Lines of metrics about a training: what it learns, how fast, and where the time goes."""

import resource
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxway_shared import training

from jaxway_job import flops, runtime, training_state
from jaxway_job.training_setup import TrainingSetup


class TrainingMetrics:
    """Metrics of a training, of which this job writes the lines after those of step ``done``.

    Times are sums since the last line.
    """

    def __init__(self, setup: TrainingSetup, folder: Path, done: int) -> None:
        self.setup, self.folder = setup, folder
        # The first process may not have dropped the later ones yet, and all decide by the same.
        lines = training.read_metrics(folder / training.METRICS)
        self.lines = [line for line in lines if line.step <= done]
        # All of them before the first step: devices would compute one only after the step in hand.
        self.learning_rates = np.asarray(jax.jit(setup.schedule)(np.arange(setup.args.steps)))
        self.step_seconds = 0.0  # of a step, all included
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure times from now on."""
        self.steps, self.data_seconds, self.checkpoint_seconds = 0, 0.0, 0.0
        self.clock_start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do something that is no part of a step's time."""
        begin = time.perf_counter()
        yield
        self.clock_start += time.perf_counter() - begin

    def count_step(self) -> None:
        """Count a step whose result has arrived."""
        self.steps += 1
        self.step_seconds = (time.perf_counter() - self.clock_start) / self.steps

    def log(
        self, step: int, loss: float, gradient_norm: float, validation: Mapping[str, Any]
    ) -> None:
        """Write a line about a step, and the speed of the steps since the last line."""
        args = self.setup.args
        speed = args.global_batch * args.context / self.step_seconds
        values = {
            "step": step,
            "loss": loss,
            "gradient_norm": gradient_norm,
            "learning_rate": float(self.learning_rates[step - 1]),
            "tokens_per_second": speed,
            "step_seconds": self.step_seconds,
            "data_seconds": self.data_seconds / self.steps,
            "checkpoint_seconds": self.checkpoint_seconds / self.steps,
            "peak_memory_bytes": peak_memory(),
            "mfu": self.mfu(speed, causal=False),
            "mfu_causal": self.mfu(speed, causal=True),
            **validation,
        }
        self.restart_clock()  # while this line is written, devices compute
        self.lines.append(training_state.append_metrics(self.folder, values))
        if runtime.first_process():
            numbers = ((k, v) for k, v in values.items() if isinstance(v, (int, float)))
            print(" ".join(f"{k} {v:.4g}" for k, v in numbers), flush=True)

    def mfu(self, tokens_per_second: float, causal: bool) -> float | None:
        """Share of the devices' peak; None where that is not known."""
        per_token = flops.per_token(self.setup.config, self.setup.args.context, causal)
        return self.setup.peak_flops and tokens_per_second * per_token / self.setup.peak_flops

    def final_loss(self) -> float:
        """Mean loss over the last tenth of training, as one batch is a small sample."""
        first = 0.9 * self.setup.args.steps
        return statistics.mean(x.numbers["loss"] for x in self.lines if x.step > first)

    def best_step(self, until: int) -> int | None:
        """The step, of those up to ``until``, after which the validation's loss was least; None,
        there was no validation."""
        return training.best_step(line for line in self.lines if line.step <= until)

    def newest(self, name: str) -> float | None:
        """What the last line that has it says; None, none has."""
        return next((x.numbers[name] for x in reversed(self.lines) if name in x.numbers), None)

    def median(self, name: str) -> float | None:
        """Median over all lines; None where it is not known."""
        values = [line.numbers[name] for line in self.lines if name in line.numbers]
        return statistics.median(values) if values else None


def peak_memory() -> int:
    """Most memory, in bytes, that a device of this process has held, or on the CPU the process."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(int(each.get("peak_bytes_in_use", process)) for each in stats)
