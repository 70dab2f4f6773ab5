"""What a sweep of short trainings takes of nodes, by Slurm's accounting: 4 on a node, and one.

A training waits for 5 minutes, as for a GPU; 8 are in hand at a time, since all nodes of the test
cluster have the same few cores, and an eighth of them runs with a node each. It takes an hour. Run
from the checkout as root, the cluster up:
.venv/bin/python benchmarks/shared_nodes.py [TRAININGS] [SECONDS]
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "workflow")]
from chain import SCRATCH  # noqa: E402
from jaxway.slurm.journal import JOURNAL, Journal  # noqa: E402
from nodes import Checkout, Cluster  # noqa: E402


def sweep(checkout: Checkout, trainings: int, seconds: float, per_node: int) -> list[int]:
    """Seconds for which each job of a sweep had its node, by Slurm's accounting."""
    training = {
        **{"program": "command", "command": f"sleep {seconds}", "partition": "dc-gpu-devel"},
        "trainings_per_node": per_node,
    }
    train = {f"by_{per_node}-{i}": training for i in range(trainings)}
    config = checkout.configure("sweep", {"train": train})
    checkout.run(config, "train", "--jobs=8", timeout=3600)
    for name in train:  # each has its own
        assert checkout.path(f"results/train/{name}/summary.json").exists()
        assert checkout.path(f"logs/train/{name}.log").exists()
    states = {checkout.path(f"results/train/{name}/state").readlink() for name in train}
    assert len(states) == trainings
    labels = {f"train_run {name}" for name in train}
    submissions = Journal(checkout.path(str(JOURNAL))).read().values()
    jobs = {each.id for each in submissions if each.label in labels}
    query = f"sacct --noheader --allocations --jobs={','.join(jobs)} --format=ElapsedRaw"
    elapsed = [*map(int, checkout.cluster.run(query).stdout.split())]
    charged = [usage for usage in costs(checkout) if usage["job"] in jobs]
    assert {usage["name"] for usage in charged} == labels, "a training without its cost"
    parts = sum(usage["seconds"] / usage["sharing"] for usage in charged)
    assert math.isclose(parts, sum(elapsed)), "costs are not what Slurm has recorded"
    return elapsed


def costs(checkout: Checkout) -> list[dict[str, Any]]:
    """What each job of each training has cost."""
    files = f"--site=profiles/jureca/site.yaml --scratch={SCRATCH}/alice/jaxway --out=cost.json"
    checkout.cluster.run(f"cd {checkout.folder}; {checkout.environment}/bin/jaxway cost {files}")
    jobs: list[dict[str, Any]] = json.loads(checkout.path("cost.json").read_text())["jobs"]
    return jobs


def main() -> None:
    """Print node-seconds of a training both ways, and their ratio."""
    trainings, seconds = [*map(int, sys.argv[1:]), *(64, 300)[len(sys.argv) - 1 :]]
    checkout = Checkout(Cluster(), name="sweep")
    checkout.run(checkout.configure("smoke_test", {}), "smoke_test", timeout=900)
    means = []
    for count, per_node in ((trainings, 4), (trainings // 8, 1)):
        elapsed = sweep(checkout, count, seconds, per_node)
        means.append(sum(elapsed) / count)
        jobs = f"{len(elapsed)} jobs of {min(elapsed)} to {max(elapsed)} s"
        print(
            f"{count} trainings, {per_node} on a node: {jobs}, {means[-1]:.1f} node-seconds each",
            flush=True,
        )
    print(f"ratio: {means[0] / means[1]:.3f}")


if __name__ == "__main__":
    main()
