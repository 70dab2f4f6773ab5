"""What validations, their samples of text, the best checkpoint and a trace cost a training, beside
the validations' own time: the same training with and without them, side by side, each on a core of
its own, and in the next pair on that of the other.

Run from the checkout, on 2 cores: .venv/bin/python benchmarks/validation_cost.py [STEPS] [PAIRS]
"""

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
VALIDATIONS = 10


def prepare(folder: Path) -> Path:
    """The record of Python's own library as data."""
    record = folder / "data.json"
    words = ["--data", "python", "--validation-bytes=131072", "--tokenizer=bytes"]
    words += [f"--store={folder}", f"--out={record}"]
    subprocess.run([sys.executable, "-m", "jaxway", "prepare-data", *words], check=True)
    return record


def clocks() -> np.ndarray:
    """Wall and CPU time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def train(core: int, words: list[str]) -> np.ndarray:
    """Wall and CPU seconds of a training, in a process of its own, from the end of its first step
    to that of its last and the checkpoint of it, without those of its validations."""
    os.sched_setaffinity(0, {core})
    sys.path.insert(0, str(ROOT / "workflow/scripts"))
    import train as program
    from jaxway_job.training_loop import Training

    seconds = np.zeros(2)

    class Timed(Training):
        def process_metrics(self, step: int, *rest: Any) -> int:
            action = super().process_metrics(step, *rest)
            if step == 1:
                seconds[:] = -clocks()
            return action

        def validate(self, params: Any) -> dict[str, Any]:
            seconds[:] += clocks()
            values = super().validate(params)
            seconds[:] -= clocks()
            return values

        def finish(self, params: Any) -> None:
            seconds[:] += clocks()
            super().finish(params)

    program.Training = Timed  # type: ignore[misc]
    sys.argv[1:] = words
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        program.main()
    return seconds


def main() -> None:
    steps, pairs = map(int, [*sys.argv[1:], *("2000", "2")[len(sys.argv) - 1 :]])
    extras = [f"--validate-every={steps // VALIDATIONS}", '--profile={"first": 21, "steps": 3}']
    kinds = {"with": extras, "without": []}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        record, extra, ratios = prepare(Path(name)), [], []
        for pair in range(pairs):
            running = {}
            with ProcessPoolExecutor(2, spawn, max_tasks_per_child=1) as pool:
                for i, (kind, options) in enumerate(kinds.items()):
                    state = f"{name}/{kind}{pair}"
                    words = [f"--data-record={record}", f"--steps={steps}", "--platform=cpu"]
                    words += [f"--state={state}", f"--out={state}/out/summary.json", *options]
                    running[kind] = pool.submit(train, (i + pair) % 2, words)
            seconds = {kind: future.result() for kind, future in running.items()}
            extra.append(seconds["with"] - seconds["without"])
            ratios.append(seconds["with"] / seconds["without"])
            lines = (
                f"{kind} {wall:.1f} s, CPU {cpu:.1f} s" for kind, (wall, cpu) in seconds.items()
            )
            load = os.getloadavg()[2]
            print(*lines, f"load of 15 minutes {load:.0f}", sep="; ", flush=True)
    for i, clock in enumerate(("by the clock", "of CPU time")):
        ratio, more = statistics.geometric_mean(x[i] for x in ratios), np.mean(extra, 0)[i]
        print(f"{clock}: {ratio:.3f} times as much, {more:.1f} s more; means of {pairs} pairs")


if __name__ == "__main__":
    main()
