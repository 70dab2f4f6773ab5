"""Time to dry-run a sweep of 1,000 trainings, beside a trivial workflow with as many jobs.

Run from the checkout: .venv/bin/python benchmarks/dry_run.py [JOBS] [REPEATS]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
JOBS, REPEATS = (int(x) for x in [*sys.argv[1:], *("1000", "5")[len(sys.argv[1:]) :]])
TRIVIAL = f"""
rule all:
    input:
        expand("{{i}}.txt", i=range({JOBS})),


rule one:
    output:
        "{{i}}.txt",
    shell:
        "touch {{output}}"
"""


def seconds(folder: str, *arguments: str | Path) -> float:
    """Wall time of a dry-run, in seconds."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", *map(str, arguments)]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


with tempfile.TemporaryDirectory() as folder:
    trivial, config = Path(folder, "trivial.smk"), Path(folder, "config.yaml")
    trivial.write_text(TRIVIAL)
    sweep = {"steps": list(range(100, 100 + JOBS))}
    config.write_text(yaml.safe_dump({"train": {"sweep": sweep}}))
    workflow = ["--snakefile", ROOT / "Snakefile", "--profile", ROOT / "profiles/local"]
    workflow += [f"--configfile={config}"]
    pairs = [
        (seconds(folder, "--snakefile", trivial), seconds(folder, *workflow))
        for _ in range(REPEATS)
    ]
    ours, theirs = [p[1] for p in pairs], [p[0] for p in pairs]
    print(f"trivial workflow, {JOBS} jobs: median {statistics.median(theirs):.2f} s")
    print(f"this workflow, {JOBS} jobs: median {statistics.median(ours):.2f} s")
    ratios = sorted(mine / other for other, mine in pairs)
    print(f"ratio: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")
