"""Run all benchmarks of one allocation, round by round, and write what they found as one result.

Runs on the first node's host, and starts every program anew in each round: so rounds are
independent, their order spreads a slow minute over all benchmarks, and what one program breaks it
breaks for itself. One that fails is not started again; the others go on, and the result says so.
"""

import argparse
import contextlib
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
from pathlib import Path
from typing import Any

from jaxway.analysis import stats
from jaxway.files import atomic_replace

GRACE = 10  # seconds that a program gets to end
# Lines of standard error that say nothing about the reason: Slurm's, and JAX's on its tracebacks.
NOISE = re.compile(r"\s*$|srun: |slurmstepd: |For simplicity, JAX|-+$")
MARGIN = 30  # seconds before the deadline that are left to write the result
Json = dict[str, Any]


def start(command: str, seconds: float, out: Path) -> str:
    """Run a program; empty, or why it failed, as a sentence."""
    environment = os.environ | {"JAXWAY_LAUNCHED": str(time.time())}
    words = ["bash", "-c", f"exec {command} --out={shlex.quote(str(out))}"]
    errors, late = out.with_suffix(".stderr"), False
    with errors.open("w") as file:
        process = subprocess.Popen(words, env=environment, stderr=file, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGTERM)  # srun then ends its processes on other nodes, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    said = errors.read_text(errors="replace")
    sys.stderr.write(said)
    if late:
        return f"it did not end within {seconds / 60:.2g} min"
    if process.returncode:
        lines = [line for line in said.splitlines() if not NOISE.match(line)] or ["it said nothing"]
        return f"it ended with exit code {process.returncode}: {lines[-1]}"
    return "" if out.exists() else "it wrote no result"


class Benchmark:
    """What one benchmark has found up to now."""

    def __init__(self, plan: Json):
        self.plan, self.failed = plan, ""
        self.provenance: Json | None = None  # of the first round
        self.transports: Counter[str] = Counter()
        self.cases: dict[str, Json] = {}

    def round(self, number: int, folder: Path, stop: float) -> None:
        """Start the program once more, unless it has failed or no time is left."""
        if self.failed or number >= self.plan["rounds"]:
            return
        left = min(60 * self.plan["timeout_minutes"], stop - time.time())
        if left <= 0:
            self.failed = "the job's time was over" if not number else ""
            return
        out = folder / f"{self.plan['name']}-{number}.json"
        self.failed = start(self.plan["command"], left, out)
        if self.failed and time.time() >= stop:
            self.failed = "" if number else "the job's time was over"
        if self.failed:
            print(f"{self.plan['name']}: {self.failed}", file=sys.stderr, flush=True)
        if not out.exists():
            return
        try:
            found = json.loads(out.read_text())
            self.provenance = self.provenance or found["provenance"]
            self.transports.update(found["transports"])
            for each in found["measurements"]:
                self.add(each)
        except (KeyError, TypeError, ValueError) as error:
            self.failed = f"its result is not as measure.write() makes it: {error!r}"

    def add(self, found: Json) -> None:
        """Add a round of a case."""
        case = self.cases.setdefault(json.dumps(found["case"]), {"case": found["case"]})
        for key in ("samples", "seconds", "per_device"):
            if key in found:
                case.setdefault(key, []).append(found.pop(key))
        worst = max(found.get("check"), case.get("check"), key=lambda x: x["error"] if x else -1)
        case.update(
            found, check=worst
        )  # one that failed once has failed; the rest is that of the last round

    def result(self) -> Json:
        """All of it, with the figures of each case."""
        measurements = [
            case | (stats.summary(case["samples"]) if "samples" in case else {})
            for case in self.cases.values()
        ]
        for case in measurements:
            if "per_device" in case:
                rounds = zip(*case["per_device"], strict=True)
                case["per_device"] = [statistics.median(device) for device in rounds]
        return {
            **{key: self.plan[key] for key in ("name", "program", "options")},
            "provenance": self.provenance,
            "transports": self.transports,
            "failed": self.failed or None,
            "measurements": measurements,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="what to run (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    args = parser.parse_args()
    plan = json.loads(args.plan.read_text())
    stop = float(os.environ.get("JAXWAY_DEADLINE", "inf")) - MARGIN
    benchmarks = [Benchmark(each) for each in plan["benchmarks"]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".rounds-") as folder:
        for number in range(max(each["rounds"] for each in plan["benchmarks"])):
            # A B, then B A: so none always comes first.
            for benchmark in benchmarks if number % 2 == 0 else reversed(benchmarks):
                benchmark.round(number, Path(folder), stop)
    found = {"allocation": plan["allocation"], "benchmarks": [x.result() for x in benchmarks]}
    atomic_replace({args.out: json.dumps(found, indent=1, allow_nan=False) + "\n"})
