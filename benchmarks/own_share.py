"""Time that a run of the default configuration spends in Snakemake itself, not in its programs.

Run from the checkout: .venv/bin/python benchmarks/own_share.py [REPEATS [OTHER_CHECKOUT ...]]

A `bash` first in PATH notes when each command of a rule begins and ends. What no command covers is
Snakemake's own: before the first one, between them, and after the last one. Runs of other
checkouts, each after `make setup`, take turns with this one's.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTE = """#!/bin/bash
began=$EPOCHREALTIME
/bin/bash "$@"
code=$?
case "${@: -1}" in
  *"-m snakemake "*) ;;  # a `run:` starts one for each job
  *) echo $began $EPOCHREALTIME >> "$NOTES" ;;
esac
exit $code
"""
PARTS = ("before the first command", "between commands", "after the last command", "in all")


def parts(checkout: Path) -> tuple[float, ...]:
    """Seconds of each of PARTS, in a run of its own."""
    with tempfile.TemporaryDirectory() as folder:
        bash, notes = Path(folder, "bin/bash"), Path(folder, "notes")
        bash.parent.mkdir()
        bash.write_text(NOTE)
        bash.chmod(0o755)
        python = checkout / ".venv/bin/python"
        command = [python, "-m", "snakemake", "--profile", checkout / "profiles/local"]
        command += ["--snakefile", checkout / "Snakefile", "--directory", folder]
        command += ["--configfile", CONFIG]
        path = f"{bash.parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "NOTES": str(notes)}
        began = time.time()
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
        ended = time.time()
        commands = sorted(tuple(map(float, x.split())) for x in notes.read_text().splitlines())
    covered, reached = 0.0, commands[0][0]
    for start, end in commands:
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    between = reached - commands[0][0] - covered
    ends = commands[0][0] - began, between, ended - reached
    return *ends, sum(ends)


CONFIG = ROOT / "config/config.yaml"
repeats = int(sys.argv[1]) if sys.argv[1:] else 3
checkouts = [ROOT, *(Path(name).resolve() for name in sys.argv[2:])]
runs: dict[Path, list[tuple[float, ...]]] = {checkout: [] for checkout in checkouts}
for _ in range(repeats):
    for checkout in checkouts:
        runs[checkout].append(parts(checkout))
for checkout, found in runs.items():
    print(f"{checkout}, median of {repeats} runs")
    for name, values in zip(PARTS, zip(*found, strict=True), strict=True):
        print(f"{statistics.median(values):8.1f} s {name} ({min(values):.1f} to {max(values):.1f})")
