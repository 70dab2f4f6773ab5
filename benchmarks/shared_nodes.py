"""What a sweep of short trainings takes of nodes, by Slurm's accounting: 16 in a job, and one.

A training waits for 5 minutes, as for a GPU. All nodes of the test cluster have the same few cores,
so both ways 8 run at a time: on the 4 GPUs of each of 2 nodes, or an eighth of the trainings each
in a job of its own, for whose node a quarter of one stands here. It takes an hour. Run from the
checkout as root, the cluster up:
.venv/bin/python benchmarks/shared_nodes.py [TRAININGS] [SECONDS]
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTITION = "dc-gpu-devel"
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/cluster", "tests/helpers", "workflow")]
from chain import SCRATCH  # noqa: E402
from jaxway.slurm.journal import JOURNAL, Journal  # noqa: E402
from nodes import Checkout, Cluster  # noqa: E402


def sweep(checkout: Checkout, trainings: int, seconds: float, per_node: int) -> list[int]:
    """Seconds for which each job of a sweep had its node, by Slurm's accounting."""
    training = {
        **{"program": "command", "command": f"sleep {seconds}", "partition": PARTITION},
        **{"walltime": math.ceil(seconds / 60) + 5, "trainings_per_node": per_node},
        **{"gpus_per_node": 1 if per_node == 1 else 4},
    }
    train = {f"by_{per_node}-{i}": training for i in range(trainings)}
    # What was trained before is not trained again.
    checkout.cluster.run(f"rm -rf {SCRATCH}/alice/jaxway/train/by_{per_node}-*")
    config = checkout.configure("sweep", {"train": train})
    checkout.run(config, "train", f"--jobs={max(8, 2 * per_node)}", timeout=3600)
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


@contextmanager
def jobs_on_a_gpu_each(cluster: Cluster) -> Iterator[None]:
    """Meanwhile a node takes as many jobs as have a GPU, whatever they want of its cores."""
    change = f"scontrol update PartitionName={PARTITION} OverSubscribe"
    cluster.run(f"{change}=FORCE:4", user="root")
    try:
        yield
    finally:
        cluster.run(f"{change}=EXCLUSIVE", user="root")


def measure(checkout: Checkout, trainings: int, seconds: int) -> None:
    """Print node-seconds of a training both ways, and their ratio."""
    checkout.run(checkout.configure("smoke_test", {}), "smoke_test", timeout=900)
    means = []
    for count, per_node in ((trainings // 8, 1), (trainings, 16)):
        elapsed = sweep(checkout, count, seconds, per_node)
        means.append(sum(elapsed) / count)
        jobs = f"{len(elapsed)} jobs of {min(elapsed)} to {max(elapsed)} s"
        print(
            f"{count} trainings, {per_node} in a job: {jobs}, {means[-1]:.1f} node-seconds each",
            flush=True,
        )
    print(f"ratio: {means[1] / means[0]:.3f}")


def main() -> None:
    """Measure sweeps of a number of trainings that take so many seconds each."""
    trainings, seconds = [*map(int, sys.argv[1:]), *(64, 300)[len(sys.argv) - 1 :]]
    checkout = Checkout(Cluster(), name="sweep")
    with jobs_on_a_gpu_each(checkout.cluster):
        measure(checkout, trainings, seconds)


if __name__ == "__main__":
    main()
