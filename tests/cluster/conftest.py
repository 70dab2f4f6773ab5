"""Fixtures: JURECA in small, for the whole test session, and a chain of short jobs on it."""

import os
import secrets
import subprocess
from collections.abc import Iterator

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
def pull(cluster: Cluster) -> Pull:
    """The workflow's own pull, into an empty $SCRATCH."""
    cluster.run("rm -rf $SCRATCH/jureca_containers $SCRATCH/alice $SCRATCH/bob", user="root")
    checkout = Checkout(cluster, name="pull")
    password = f"canary-{secrets.token_hex(8)}"
    environment = {"APPTAINER_DOCKER_USERNAME": "alice", "APPTAINER_DOCKER_PASSWORD": password}
    with checkout.start(checkout.configure("pull", {}), "pull", **environment) as snakemake:
        code, output = snakemake.wait(600)
    assert code == 0, output
    return Pull(output, password)


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
