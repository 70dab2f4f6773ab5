"""Run all benchmarks of one allocation, round by round, and write what they found as one result.

Runs on the first node's host, and starts every program anew in each round: so rounds are
independent, their order spreads a slow minute over all benchmarks, and a program that breaks
something breaks it only for itself. One that fails is not started again; the others continue, and
the result gives the reason.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxway_shared.benchmark import (
    AllocationResult,
    BenchmarkPlan,
    BenchmarkResult,
    BenchmarkRound,
    CaseResult,
    Description,
    Measurement,
    PlannedBenchmark,
    RoundCase,
    RoundMeasurement,
)
from jaxway_shared.errors import UserError, with_code

from jaxway.analysis import stats
from jaxway.files import atomic_replace, block_signals, unblock_signals

KILL_TIMEOUT_S = 10  # between SIGTERM and SIGKILL
SHUTDOWN_MARGIN_S = 30  # before the job's deadline, to write the result
# Lines of standard error that are no reason: Slurm's, and JAX's about its tracebacks.
NOISE_RE = re.compile(r"\s*$|srun: |slurmstepd: |For simplicity, JAX|-+$")
HAS_CODE_RE = re.compile(r"\[JW\d{3}\]$")  # a program's own error
OUT_OF_TIME = with_code("JW454", "the job's time was over")


def start(command: str, timeout_s: float, out: Path) -> str:
    """Run a program; empty, or why it failed, as a sentence."""
    environment = os.environ | {"JAXWAY_LAUNCHED": str(time.time())}
    words = ["bash", "-c", f"exec {command} --out={shlex.quote(str(out))}"]
    stderr_file, timed_out = out.with_suffix(".stderr"), False
    with stderr_file.open("w") as file:
        block_signals()
        process = subprocess.Popen(
            words,
            env=environment,
            stderr=file,
            start_new_session=True,
            preexec_fn=unblock_signals,
        )
    try:
        unblock_signals()
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
        os.killpg(process.pid, signal.SIGTERM)  # srun then ends its processes on other nodes, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    stderr = stderr_file.read_text(errors="replace")
    sys.stderr.write(stderr)
    if timed_out:
        return with_code("JW454", f"it did not end within {timeout_s / 60:.2g} min")
    if process.returncode:
        lines = [line for line in stderr.splitlines() if not NOISE_RE.match(line)] or ["no output"]
        sentence = f"it ended with exit code {process.returncode}: {lines[-1]}"
        return sentence if HAS_CODE_RE.search(sentence) else with_code("JW455", sentence)
    return "" if out.exists() else with_code("JW455", "it wrote no result")


class BenchmarkRun:
    """One benchmark and its rounds so far."""

    def __init__(self, plan: PlannedBenchmark) -> None:
        self.plan, self.failed = plan, ""
        self.rounds: list[BenchmarkRound] = []

    def run_round(self, number: int, folder: Path, stop: float) -> None:
        """Start the program once more, unless it has failed or no time is left."""
        if self.failed or number >= self.plan.rounds:
            return
        left = min(60 * self.plan.timeout_minutes, stop - time.time())
        if left <= 0:
            self.failed = OUT_OF_TIME if not number else ""
            return
        out = folder / f"{self.plan.name}-{number}.json"
        self.failed = start(self.plan.command, left, out)
        if self.failed and time.time() >= stop:
            self.failed = "" if number else OUT_OF_TIME
        try:
            self.rounds.append(BenchmarkRound.read(out))
        except FileNotFoundError:  # start() has found the reason
            pass
        except UserError as error:
            print(error, file=sys.stderr)
            self.failed = with_code("JW455", "its result is not as measure.write() writes it")
        if self.failed:
            print(f"{self.plan.name}: {self.failed}", file=sys.stderr, flush=True)

    def result(self) -> BenchmarkResult:
        """All rounds together."""
        transports: Counter[str] = Counter()
        cases: dict[str, list[RoundCase]] = {}
        for each in self.rounds:
            transports.update(each.transports)
            for case in each.cases:
                cases.setdefault(json.dumps(case.case), []).append(case)
        return BenchmarkResult(
            name=self.plan.name,
            program=self.plan.program,
            options=self.plan.options,
            provenance=self.rounds[0].provenance if self.rounds else None,
            transports=dict(transports),
            failed=self.failed or None,
            cases=[combine_case(rounds) for rounds in cases.values()],
        )


def combine_case(rounds: Sequence[RoundCase]) -> CaseResult:
    """All rounds of a case. If it failed in any of them, it has failed."""
    measured = [each.measurement for each in rounds if each.measurement]
    return CaseResult(
        case=rounds[0].case,
        measurement=combine_measurements(measured) if measured else None,
        failed=next((each.failed for each in reversed(rounds) if each.failed), None),
        skipped=next((each.skipped for each in reversed(rounds) if each.skipped), None),
    )


def combine_measurements(rounds: Sequence[RoundMeasurement]) -> Measurement:
    """The samples of all rounds, their worst check, and for the rest the last round."""
    checks = [each.check for each in rounds if each.check]
    devices = [each.per_device for each in rounds if each.per_device]
    last = {
        field.name: getattr(rounds[-1], field.name) for field in dataclasses.fields(Description)
    }
    last["check"] = max(checks, key=lambda check: check.error) if checks else None
    if devices:
        last["per_device"] = [statistics.median(device) for device in zip(*devices, strict=True)]
    samples = [each.samples for each in rounds]
    figures = stats.summary(samples)._asdict()
    return Measurement(
        seconds=[each.seconds for each in rounds], samples=samples, **last, **figures
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--plan", type=Path, required=True, help="what to run (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")


def run(args: argparse.Namespace) -> None:
    """Run all rounds of a plan."""
    plan = BenchmarkPlan.read(args.plan)
    stop = float(os.environ.get("JAXWAY_DEADLINE", "inf")) - SHUTDOWN_MARGIN_S
    benchmarks = [BenchmarkRun(each) for each in plan.benchmarks]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".rounds-") as folder:
        for number in range(max(each.rounds for each in plan.benchmarks)):
            # A B, then B A: so none always comes first.
            for benchmark in benchmarks if number % 2 == 0 else reversed(benchmarks):
                benchmark.run_round(number, Path(folder), stop)
    result = AllocationResult(plan.allocation, [each.result() for each in benchmarks])
    atomic_replace({args.out: json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n"})
