"""CPU time and memory of a dry-run of 1,000 trainings, beside a trivial workflow with as many jobs.

Run from the checkout: .venv/bin/python benchmarks/dry_run.py [JOBS] [REPEATS] [KIND]
KIND: train, benchmark (each of a placement of its own) or node_check (of a node each). One of the
latter two has two jobs: the second one records its result.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
JOBS, REPEATS = (int(x) for x in [*sys.argv[1:3], *("1000", "5")[len(sys.argv[1:3]) :]])
KIND = [*sys.argv[3:], "train"][0]
CONFIGS = {
    "train": {"train": {"sweep": {"steps": list(range(100, 100 + JOBS))}}},
    "benchmark": {
        "benchmark": {f"on-{i}": {"program": "compute", "nodes": i} for i in range(1, JOBS + 1)}
    },
    "node_check": {
        "benchmark": {"compute": {}},
        "node_check": {"nodes": [f"jrc[{1:04}-{JOBS:04}]"]},
    },
}
TRIVIAL = f"""
rule all:
    input:
        expand("{{i}}.txt", i=range({JOBS if KIND == "train" else 2 * JOBS})),


rule one:
    output:
        "{{i}}.txt",
    shell:
        "touch {{output}}"
"""


class Usage(NamedTuple):
    seconds: float  # of CPU time: others use the machine too
    megabytes: float  # of memory, at most


def dry_run(folder: str, *arguments: str | Path) -> Usage:
    """What a dry-run takes."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


with tempfile.TemporaryDirectory() as folder:
    trivial, config = Path(folder, "trivial.smk"), Path(folder, "config.yaml")
    trivial.write_text(TRIVIAL)
    plan = {"account": "project", "preflight": False}  # here is no Slurm
    config.write_text(yaml.safe_dump(plan | CONFIGS[KIND]))
    profile = ROOT / "profiles" / ("local" if KIND == "train" else "jureca")
    workflow = ["--snakefile", ROOT / "Snakefile", f"--profile={profile}", KIND]
    workflow += [f"--configfile={config}"]
    os.environ["SCRATCH"] = folder
    pairs = [
        (dry_run(folder, "--snakefile", trivial), dry_run(folder, *workflow))
        for _ in range(REPEATS)
    ]
    for unit, field in (("CPU s", 0), ("MB", 1)):
        theirs, ours = ([usage[field] for usage in column] for column in zip(*pairs, strict=True))
        ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
        print(
            f"{JOBS} of {KIND}, medians of {REPEATS}: trivial workflow {median(theirs):.1f} "
            f"{unit}, this one {median(ours):.1f} {unit}, ratio {median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
