"""docs/porting.md alone takes the chain to another machine: its blocks are run as they stand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from nodes import Checkout, Cluster
from test_chain import SMALL

CONFIGURATION = {
    "train": {"two_nodes": SMALL | {"nodes": 2}},
    "benchmark": {"memory": {"megabytes": 1, "rounds": 1}},
}

pytestmark = [pytest.mark.docs, pytest.mark.usefixtures("repaired")]


def script(page: str) -> str:
    """What a reader of the page types and writes, in its order."""
    lines = ["set -eo pipefail"]
    for kind, text in re.findall(r"^```(bash|yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "yaml":
            file = text.split()[1]  # its first line is a comment with its name
            text = f"mkdir -p {Path(file).parent}\ncat > {file} <<'END'\n{text}END\n"
        lines.append(text.replace("<account>", "training"))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def followed(cluster: Cluster) -> tuple[Checkout, str]:
    """A checkout in which the page has been followed, pull and all, and what was printed there."""
    cluster.run("rm -rf $SCRATCH/jaxway_containers $SCRATCH/alice")
    checkout = Checkout(cluster, name="ported")
    checkout.configure("config/config", CONFIGURATION)
    typed = f"cd {checkout.folder}\nPATH=$PWD/.venv/bin:$PATH\n"
    typed += script(Path("docs/porting.md").read_text())
    return checkout, cluster.run(typed, timeout=400).stdout


def test_the_machine_tells_its_facts(followed: tuple[Checkout, str]) -> None:
    """Each thing that the page says can be read there."""
    output = followed[1].splitlines()
    for fact in (
        *["training", "gpu-short 2:00:00 2 2:64:1 gpu:4", r"apptainer version 1\.\S+"],
        *[r"GPUs \S+", "/p/scratch/training", followed[0].folder, r"/p/\S+/bin/python"],
        *[r"10\.99\.1\.2 +jrc0102 .*", r"ib0\S* +\S+ +10\.99\.1\.1/16 .*"],
    ):
        assert any(re.fullmatch(fact, line.strip()) for line in output), (fact, output)


def test_the_chain_runs_where_the_new_site_says(
    cluster: Cluster, followed: tuple[Checkout, str]
) -> None:
    def result(name: str) -> dict[str, Any]:
        return json.loads(followed[0].path(f"results/{name}.json").read_text())

    (benchmark,) = result("benchmark/1x2")["benchmarks"]
    jobs = {}
    for found, nodes, processes, partition in (
        (result("smoke_test"), 1, 1, "gpu-short"),
        (result("train/two_nodes/summary"), 2, 2, "gpu"),
        (benchmark, 1, 1, "gpu-short"),
    ):
        provenance = found["provenance"]
        assert provenance["site"] == "profiles/mycluster"
        assert (provenance["devices"], provenance["processes"]) == (2 * nodes, processes)
        jobs[provenance["job"]] = partition
    query = f"sacct --noheader --allocations --jobs={','.join(jobs)} --format=jobid,partition"
    assert dict(map(str.split, cluster.run(query).stdout.splitlines())) == jobs
    assert followed[0].path("results/report.html").exists()
