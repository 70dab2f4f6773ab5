"""What passes until the first step of a training, part by part, on the test cluster: one process,
and eight on two nodes; first with nothing compiled, then with the cache of the job before, which
several processes on the CPU do without.

Run from the checkout as root, the test cluster up: .venv/bin/python benchmarks/start.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster")]
from nodes import Checkout, Cluster  # noqa: E402

SCRATCH = "/p/scratch/training"
SIF = f"{SCRATCH}/jureca_containers/jax.sif"
TRAINING = {
    **{"layers": 2, "width": 128, "heads": 2, "context": 128, "steps": 2, "warmup_steps": 1},
    **{"validation_bytes": 1024, "data": ["workflow/scripts/*.py"], "gpus_per_node": 1},
}
TRAININGS = {
    "one": TRAINING,
    "eight": TRAINING | {"nodes": 2, "processes_per_node": 4, "gpus_per_node": 4},
}
PROGRAM = "import time, sys; print(time.time() - float(sys.argv[1]))"


def container(cluster: Cluster, command: str) -> float:
    """Seconds from before a command to the first line of Python that it starts."""
    line = f'{command} -c "{PROGRAM}" $(date +%s.%N)'
    return min(float(cluster.run(line, node="jrc0101").stdout) for _ in range(5))


def main() -> None:
    cluster = Cluster()
    checkout = Checkout(cluster, name="start")
    config = checkout.configure("start", {"train": TRAININGS})
    checkout.run(config, "smoke_test", timeout=900)
    inside, outside = (container(cluster, f"{x} python3") for x in (f"apptainer exec {SIF}", ""))
    rows = {}
    for cache in ("cold", "warm"):
        cluster.run(f"rm -rf {checkout.folder}/results/train")
        for name in TRAININGS:
            state = f"{SCRATCH}/alice/jaxway/train/{name}-*"
            cluster.run(
                f"rm -rf {state}" if cache == "cold" else f"rm -rf {state}/[!c]* {state}/che*"
            )
            checkout.run(config, f"results/train/{name}/summary.json", timeout=600)
            result = checkout.path(f"results/train/{name}/summary.json").read_text()
            rows[name, cache] = json.loads(result)["segments"][0]["startup"]
    print(f"container: {inside - outside:.2f} s, with Python {inside:.2f} s")
    parts = list(rows["one", "cold"])
    print(f"{'s':16}", *(f"{part:>10}" for part in [*parts, "all"]))
    for (name, cache), row in rows.items():
        numbers = [*(row[part] for part in parts), sum(row.values())]
        print(f"{name + ', ' + cache:16}", *(f"{number:10.2f}" for number in numbers))


if __name__ == "__main__":
    main()
