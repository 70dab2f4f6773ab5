"""What a run costs a job on Slurm: 5 jobs in a chain that do nothing, through profiles/jureca,
beside the same 5 by hand with `sbatch --dependency=afterok`, in turns.

Run from the checkout as root, the test cluster up: .venv/bin/python benchmarks/orchestration.py
"""

import json
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/cluster"))
from nodes import Checkout, Cluster  # noqa: E402

JOBS, REPEATS = 5, 2
SNAKEFILE = f"""
include: "rules/common.smk"


rule all:
    default_target: True
    input:
        "results/nothing/{JOBS}",


rule nothing:
    input:
        lambda w: f"results/nothing/{{int(w.i) - 1}}" if w.i != "1" else [],
    output:
        "results/nothing/{{i}}",
    threads: LAUNCH.threads(CONFIG.smoke_test.placement)
    resources:
        **LAUNCH.resources(CONFIG.smoke_test.placement),
    shell:
        "date +%s.%N > {{output}}"
"""
# Stands before Slurm's commands in PATH and notes when they are called and when they return.
CLOCK = """#!/bin/bash
began=$(date +%s.%N)
/usr/bin/${0##*/} "$@"
code=$?
echo "[\\"${0##*/}\\", $began, $(date +%s.%N)]" >> $CALLS
exit $code
"""
BY_HAND = f"""
cd results/nothing; began=$(date +%s.%N); after=
for i in $(seq {JOBS}); do
  job=$(sbatch --parsable --output=/dev/null -A training -p dc-gpu-devel -t 30 --nodes=1 \
    --ntasks-per-node=2 --cpus-per-task=64 --gres=gpu:4 $after --wrap "date +%s.%N > $i")
  after=--dependency=afterok:$job
done
until [ -s {JOBS} ]; do sleep 0.05; done
echo $began $(cat *)
"""
PARTS = (
    "from the query that finds the job before it ended to sbatch",
    "sbatch itself",
    "start by Slurm",
    "start of Snakemake in the job",
    "its end",
    "until the query that finds that",
)


def by_hand(checkout: Checkout) -> list[float]:
    """Seconds from each job's beginning to the next one's; the first since its submission."""
    checkout.cluster.run(f"cd {checkout.folder}; rm -rf results/nothing; mkdir -p results/nothing")
    output = checkout.cluster.run(f"cd {checkout.folder}; {BY_HAND}", timeout=600).stdout
    return [b - a for a, b in pairwise(map(float, output.split()))]


def through_profile(checkout: Checkout) -> list[list[float]]:
    """For each job after the first, which waits for nobody, the seconds of each of PARTS."""
    checkout.cluster.run(f"cd {checkout.folder}; rm -rf results/nothing .snakemake calls")
    variables = "PATH=$PWD/clock:$PATH CALLS=$PWD/calls SBATCH_ACCOUNT=training"
    snakemake = ".venv/bin/snakemake --profile profiles/jureca --snakefile nothing.smk"
    checkout.cluster.run(f"cd {checkout.folder}; {variables} {snakemake}", timeout=900)
    calls = [json.loads(line) for line in checkout.path("calls").read_text().splitlines()]
    submissions = [(began, ended) for name, began, ended in calls if name == "sbatch"]
    queries = [ended for name, _, ended in calls if name == "squeue"]
    # Slurm makes a job's log when it starts it; the job writes to it until its end.
    logs = checkout.path(".snakemake/slurm_logs/rule_nothing")
    parts = []
    found = 0.0
    for i, (began, ended) in enumerate(submissions, 1):
        (log,) = (logs / str(i)).iterdir()
        form = ["stat", "--format=%.9W %.9Y", log]
        birth, last = subprocess.run(form, capture_output=True, text=True).stdout.split()
        body = float(checkout.path(f"results/nothing/{i}").read_text())
        until = submissions[i][0] if i < JOBS else float("inf")
        times = [found, began, ended, float(birth), body, float(last)]
        found = max(ended for ended in queries if ended < until)
        parts.append([b - a for a, b in pairwise([*times, found])])
    return parts[1:]


def main() -> None:
    """Print seconds per job, both ways, and where those of the profile go."""
    checkout = Checkout(Cluster(), name="orchestration")
    checkout.path("nothing.smk").write_text(SNAKEFILE)
    checkout.path("clock").mkdir()
    for name in ("sbatch", "squeue"):
        checkout.path(f"clock/{name}").write_text(CLOCK)
        checkout.path(f"clock/{name}").chmod(0o755)
    hand: list[float] = []
    ours: list[list[float]] = []
    for _ in range(REPEATS):
        hand += by_hand(checkout)[1:]
        ours += through_profile(checkout)
    theirs, mine = statistics.mean(hand), statistics.mean(map(sum, ours))
    print(f"by hand: {theirs:.1f} s a job, {min(hand):.1f} to {max(hand):.1f} ({len(hand)} jobs)")
    totals = [*map(sum, ours)]
    print(f"by profile: {mine:.1f} s a job, {min(totals):.1f} to {max(totals):.1f}")
    print(f"more than by hand: {mine - theirs:.1f} s a job")
    for name, seconds in zip(PARTS, zip(*ours, strict=True), strict=True):
        print(f"{statistics.mean(seconds):6.1f} s {name}")


if __name__ == "__main__":
    main()
