"""Fixtures: JURECA in small, for the whole test session, and a chain of short jobs on it."""

import fcntl
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from chain import Chain
from nodes import COMMAND, UNSUITABLE, Checkout, Cluster, Pull


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; one that somebody started by hand is used and left running."""
    by_hand = subprocess.run([COMMAND, "status"], capture_output=True).returncode == 0
    up = subprocess.run([COMMAND, "up"], capture_output=True, text=True)
    message = up.stderr.strip().removeprefix("cluster: ")
    if up.returncode == UNSUITABLE and not os.environ.get("CI"):
        pytest.skip(message)
    assert up.returncode == 0, message
    yield Cluster()
    if not by_hand:
        subprocess.run([COMMAND, "down"], check=True)


@pytest.fixture(scope="session")
def pull(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Pull:
    """The workflow's own pull, into an empty $SCRATCH. Another cluster gets a copy of it."""
    cluster.run("rm -rf $SCRATCH/jureca_containers $SCRATCH/alice $SCRATCH/bob", user="root")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder in that of all
        folder = folder.parent
    containers, record = cluster.path("/p/scratch/training/jureca_containers"), folder / "pull.json"
    with (folder / "pull.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if record.exists():
            subprocess.run(["cp", "-a", folder / containers.name, containers], check=True)
            return Pull(**json.loads(record.read_text()))
        checkout = Checkout(cluster, name="pull")
        password = f"canary-{secrets.token_hex(8)}"
        environment = {"APPTAINER_DOCKER_USERNAME": "alice", "APPTAINER_DOCKER_PASSWORD": password}
        with checkout.start(checkout.configure("pull", {}), "pull", **environment) as snakemake:
            code, output = snakemake.wait(400)
        assert code == 0, output
        subprocess.run(["cp", "-a", containers, folder / containers.name], check=True)
        pulled = Pull(output, password)
        record.write_text(json.dumps(asdict(pulled)))
    return pulled


@pytest.fixture
def chain(cluster: Cluster, pull: Pull, request: pytest.FixtureRequest) -> Chain:
    return Chain(cluster, request.node.originalname.removeprefix("test_"))


@pytest.fixture
def repaired(cluster: Cluster) -> Iterator[None]:
    """Afterwards all nodes and services run again and no job is left, also when the test failed."""
    yield
    if cluster.disturbed:
        for service in ("slurmdbd", "slurmctld"):
            cluster.control("start", service)
        for node in cluster.compute:
            if not cluster.is_up(node):
                cluster.control("start-node", node)
    left = cluster.run("squeue --noheader --format=%i", user="root").stdout.split()
    if left:
        cluster.run(["scancel", *left], user="root", check=False)  # some end meanwhile
    if left or cluster.disturbed:
        idle = {f"{node}=idle" for node in cluster.compute}
        nodes = "sinfo --noheader --Node --format=%N=%T"
        cluster.wait_for(lambda: set(cluster.run(nodes).stdout.split()) == idle, what="idle nodes")
    cluster.disturbed = False
