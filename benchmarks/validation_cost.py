"""What validations, their best checkpoints and a trace cost a training, beside the validations' own
time: the same training with and without them, in turns, with equal steps.

Run from the checkout: .venv/bin/python benchmarks/validation_cost.py [STEPS] [PAIRS]
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ["--validate-every={}", '--profile={{"first": 21, "steps": 3}}', "--keep-every={}"]
VALIDATIONS = 10


def prepare(folder: Path) -> Path:
    """The record of Python's own library as data."""
    record = folder / "data.json"
    words = ["--data", "python", "--validation-bytes=131072", "--tokenizer=bytes"]
    words += [f"--store={folder}", f"--out={record}"]
    subprocess.run([sys.executable, "-m", "jaxway", "prepare-data", *words], check=True)
    return record


def train(record: Path, out: Path, steps: int, extras: list[str]) -> float:
    """Seconds from the first step to the end, but for validations."""
    words = [f"--data-record={record}", f"--steps={steps}", f"--state={out}", "--platform=cpu"]
    words += [f"--out={out}/result/summary.json", *extras]
    program = ROOT / "workflow/scripts/train.py"
    subprocess.run([sys.executable, program, *words], check=True, stdout=subprocess.DEVNULL)
    (segment,) = json.loads((out / "segments.json").read_text())["segments"]
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    validations = sum(line.get("validation_seconds", 0.0) for line in lines)
    return float(segment["seconds"] - sum(segment["startup"].values()) - validations)


def main() -> None:
    steps, pairs = map(int, [*sys.argv[1:], *("2000", "5")[len(sys.argv) - 1 :]])
    extras = [word.format(steps // VALIDATIONS) for word in EXTRAS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record, ratios = prepare(folder), []
        for pair in range(pairs):
            seconds = {}
            for kind, words in itertools.islice(  # who is first changes
                itertools.cycle([("with", extras), ("without", [])]), pair % 2, pair % 2 + 2
            ):
                seconds[kind] = train(record, folder / f"{kind}{pair}", steps, words)
            ratios.append(seconds["with"] / seconds["without"])
            print(*(f"{kind} {value:.1f} s" for kind, value in sorted(seconds.items())), ratios[-1])
    print(f"{steps} steps: {statistics.median(ratios):.3f} times as long (median of {pairs} pairs)")


if __name__ == "__main__":
    main()
