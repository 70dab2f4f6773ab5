"""What a sweep of short trainings takes of nodes: 64 with 4 on each node, and with a node each.

A training waits, as for a GPU. Nodes of the test cluster have the same few cores, so 4 trainings
are in hand at a time. Run from the checkout as root, the cluster up:
.venv/bin/python benchmarks/shared_nodes.py [TRAININGS] [SECONDS]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "workflow")]
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
    checkout.run(config, "train", "--jobs=4", timeout=3600)
    for name in train:  # each has its own
        assert checkout.path(f"results/train/{name}/summary.json").exists()
        assert checkout.path(f"logs/train/{name}.log").exists()
    labels = {f"train_run {name}" for name in train}
    submissions = Journal(checkout.path(str(JOURNAL))).read().values()
    jobs = {each.id for each in submissions if each.label in labels}
    query = f"sacct --noheader --allocations --jobs={','.join(jobs)} --format=ElapsedRaw"
    return [*map(int, checkout.cluster.run(query).stdout.split())]


def main() -> None:
    """Print node-seconds both ways, and their ratio."""
    trainings, seconds = [*map(int, sys.argv[1:]), *(64, 30)[len(sys.argv) - 1 :]]
    checkout = Checkout(Cluster(), name="sweep")
    checkout.run(checkout.configure("smoke_test", {}), "smoke_test", timeout=900)
    totals = []
    for per_node in (4, 1):
        elapsed = sweep(checkout, trainings, seconds, per_node)
        totals.append(sum(elapsed))
        jobs = f"{len(elapsed)} jobs, {min(elapsed)} to {max(elapsed)} s each"
        print(f"{per_node} on a node: {sum(elapsed)} node-seconds in {jobs}", flush=True)
    print(f"ratio: {totals[0] / totals[1]:.3f}")


if __name__ == "__main__":
    main()
