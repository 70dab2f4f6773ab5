"""A planted fault for each check of preflight: named before anything is submitted."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jaxway.slurm.journal import JOURNAL, Journal
from nodes import Checkout, Cluster

SMALL = {"steps": 10, "warmup_steps": 2, "global_batch": 8, "data": ["workflow/scripts/*.py"]}
SMALL |= {"validation_bytes": 1024, "walltime": 10}
SCRATCH = "/p/scratch/training/preflight"
REFUSING = """#!/bin/sh
[ "$SLURM_JOB_ID" ] && exec /usr/bin/apptainer "$@"
echo 'Apptainer runs on compute nodes only'; exit 1
"""


@pytest.fixture(scope="module")
def alice(cluster: Cluster) -> Iterator[Checkout]:
    """A checkout of its own, and folders in place of $SCRATCH."""
    checkout = Checkout(cluster, name="preflight")
    cluster.run(["mkdir", "-p", SCRATCH])
    yield checkout
    cluster.run(f"umount {SCRATCH}/*; rm -rf {SCRATCH}", user="root", check=False)


def output(checkout: Checkout, settings: Any, **environment: str) -> str:
    """What preflight says of a configuration; it submits nothing, and its exit code fits."""
    config = checkout.configure("preflight", settings)
    with checkout.start(config, "preflight", **environment) as snakemake:
        code, text = snakemake.wait(120)
    assert not checkout.cluster.run("squeue --noheader --user=alice").stdout
    assert code == ("FAIL" in text), text
    return text


def scratch(cluster: Cluster, name: str, options: str) -> str:
    """A file system of its own, with a limit, in place of $SCRATCH."""
    folder = f"{SCRATCH}/{name}"
    mount = f"mount -t tmpfs -o mode=777,{options} tmpfs {folder}"
    cluster.run(f"mkdir {folder} && {mount}", user="root")
    return folder


def test_healthy_plan_is_all_green(cluster: Cluster, alice: Checkout) -> None:
    settings = {
        "train": {"one": SMALL, "two": SMALL | {"nodes": 2}},
        "benchmark": {"memory": {}},
        "node_check": {"nodes": list(cluster.compute)},
    }
    text = output(alice, settings, SCRATCH=SCRATCH)
    assert "WARN" not in text
    for subject in ("apptainer", "image", "account", "partition", "queue", "nodes", "folders"):
        assert f"PASS {subject} " in text
    assert "PASS account training by `jutil user cpuquota`: " in text
    assert "GB and 74,653 inodes left of the project's quota" in text
    for subject in ("disk space", "data", "shared", "home"):
        assert f"PASS {subject} " in text
    assert "GB to pull" in text
    assert "at most" in text.partition(" cost ")[2]


@contextmanager
def refusing_login_node(alice: Checkout, partition: str) -> Iterator[str]:
    """PATH of a login node that refuses Apptainer, so that containers are pulled in a partition."""
    site, own = f"{alice.folder}/profiles/jureca/site.yaml", f"{alice.folder}/refusing"
    alice.cluster.run(["sed", "-i", f"s/^partitions:/&\\n  pull: {partition}/", site])
    script = f"cat > {own}/apptainer; chmod +x {own}/apptainer"
    alice.cluster.run(f"mkdir -p {own}; {script}", input=REFUSING)
    try:
        yield f"{own}:/usr/local/bin:/usr/bin:/bin"
    finally:
        alice.cluster.run(["sed", "-i", f"/pull: {partition}/d", site])


def test_faults_of_the_plan(alice: Checkout) -> None:
    """On a login node that refuses Apptainer."""
    settings = {
        "image": "docker://nvcr.io/nvidia/jax:none",
        "environment": {"HF_HOME": "/p/home/jusers/alice/jureca/cache"},
        "train": {
            "closed": SMALL | {"partition": "dc-closed"},
            "nowhere": SMALL | {"partition": "dc-none"},
            "wide": SMALL | {"nodes": 3, "global_batch": 12},
            "long": SMALL | {"walltime": 24 * 60 + 1},
            "half_a_day": SMALL | {"walltime": 12 * 60 + 1, "partition": "booster"},
            "short": SMALL | {"validation_bytes": 10**9},
        },
    }
    with refusing_login_node(alice, "dc-offline") as path:
        text = output(alice, settings, SCRATCH=SCRATCH, SBATCH_ACCOUNT="forbidden", PATH=path)
    assert "FAIL apptainer" not in text
    for fault in (
        "FAIL partition pull.partition: Partition dc-offline not found; open are ",
        "FAIL image nvcr.io has no none of nvidia/jax",
        "FAIL account you may not charge account 'forbidden'",
        "FAIL partition train.closed.partition: dc-closed is INACTIVE and starts no job; open are ",
        "FAIL partition train.nowhere.partition: Partition dc-none not found; open are ",
        "FAIL partition train.wide.nodes: dc-gpu gives at most 2 to a job, not 3",
        "FAIL partition train.long.walltime: dc-gpu allows 1440 minutes, not 1441",
        "FAIL partition train.half_a_day.walltime: QoS part_booster allows 720 minutes, not 721",
        "FAIL data train.short.data: ",
        "WARN home $HF_HOME is in $HOME",
    ):
        assert fault in text


def test_excluded_node_that_does_not_exist(alice: Checkout) -> None:
    settings = {"train": {"one": SMALL}, "exclude": ["jrc0101", "jrc[0900-0901]"]}
    text = output(alice, settings, SCRATCH=SCRATCH)
    assert "exclude: Slurm would refuse it: Invalid node name specified" in text


def test_missing_data(alice: Checkout) -> None:
    config = alice.configure("missing", {"train": {"empty": {"data": ["/p/none/*.txt"]}}})
    with alice.start(config, "preflight") as snakemake:
        code, text = snakemake.wait(60)
    assert code == 1
    assert "train.empty.data: nothing matches /p/none/*.txt" in text


@pytest.mark.parametrize(
    ("name", "options", "fault"),
    [
        ("inodes", "nr_inodes=20", "inodes required: free some space there"),
        ("space", "size=100k", "inodes required: free some space there"),
        ("readonly", "ro", "you cannot write there"),
    ],
)
def test_faults_of_scratch(cluster: Cluster, alice: Checkout, name, options, fault) -> None:
    folder = scratch(cluster, name, options)
    text = output(alice, {"train": {"one": SMALL}}, SCRATCH=folder)
    subject = "folders" if name == "readonly" else "disk space"
    assert f"FAIL {subject} {folder}" in text
    assert fault in text


def test_scratch_that_is_not_there(alice: Checkout) -> None:
    text = output(alice, {"train": {"one": SMALL}}, SCRATCH="/p/scratch/gone")
    assert "FAIL folders $SCRATCH: there is no folder /p/scratch/gone on this node" in text


def test_faults_of_the_machine(cluster: Cluster, alice: Checkout) -> None:
    """Nodes with fewer GPUs than the site's description says, an environment on this node's disk,
    and an Apptainer that this user may not start."""
    site, own = f"{alice.folder}/profiles/jureca/site.yaml", "/tmp/environment"
    cluster.run(["sed", "-i", "s/gpus_per_node: 4/gpus_per_node: 8/", site])
    alice.make_setup(own)
    refused = "User alice is not in group container and hence not authorized to use apptainer"
    apptainer = f"#!/bin/sh\necho {refused}; exit 1\n"
    file = f"{own}/bin/apptainer"
    cluster.run(f"cat > {file} && chmod +x {file}", input=apptainer)
    text = output(
        alice, {"train": {"one": SMALL}}, SCRATCH=SCRATCH, PATH=f"{own}/bin:/usr/bin:/bin"
    )
    alice.make_setup(".venv")
    for fault in (
        "FAIL apptainer you may not use Apptainer here yet",
        "FAIL partition train.one.gpus_per_node: a node of dc-gpu has 4, not 8",
        f"FAIL shared Python's environment, {own}, exists on this node only: move it to /p",
    ):
        assert fault in text
    cluster.run(["sed", "-i", "s/gpus_per_node: 8/gpus_per_node: 4/", site])


def test_exhausted_budget(cluster: Cluster, alice: Checkout) -> None:
    limit = "sacctmgr -i modify account training set GrpTRESMins=cpu={}"
    cluster.run(limit.format(0), user="root")
    try:
        text = output(alice, {"train": {"one": SMALL}}, SCRATCH=SCRATCH)
    finally:
        cluster.run(limit.format(-1), user="root")
    assert re.search("FAIL account training has -?[0-9,]+ CPU-h left: its jobs would", text)


def test_real_run_is_refused(alice: Checkout) -> None:
    settings = {"train": {"closed": SMALL | {"partition": "dc-closed"}}}
    config = alice.configure("refused", settings)
    with alice.start(config, "train", SCRATCH=SCRATCH) as snakemake:
        code, text = snakemake.wait(60)
    assert code == 1
    assert "FAIL partition train.closed.partition: dc-closed is INACTIVE" in text
    assert "nothing was submitted" in text
    assert not alice.path("logs/pull.log").exists()


@pytest.fixture
def online(cluster: Cluster) -> Iterator[str]:
    """A partition whose node reaches the registry."""
    node, name = "jrc0102", "online"
    address = cluster.run("getent hosts nvcr.io").stdout.split()[0]
    login = "$(getent hosts jrlogin01 | cut -d' ' -f1)"
    reach = f"ip route add {address} via {login} && echo {address} nvcr.io >> /etc/hosts"
    cluster.run(reach, node=node, user="root")
    create = f"scontrol create PartitionName={name} Nodes={node} MaxTime=2:00:00"
    cluster.run(create, user="root")
    yield name
    cluster.run(f"scontrol delete PartitionName={name}", user="root")
    cluster.run(f"ip route del {address}; sed -i /nvcr.io/d /etc/hosts", node=node, user="root")


def test_pull_as_a_job(cluster: Cluster, alice: Checkout, online: str) -> None:
    """On the login node that refuses Apptainer; jobs run in what was pulled."""
    with refusing_login_node(alice, online) as path:
        config = alice.configure("online", {})
        with alice.start(config, "smoke_test", SCRATCH=SCRATCH, PATH=path) as snakemake:
            code, text = snakemake.wait(400)
    assert code == 0, text
    (pull,) = (
        job for job in Journal(alice.path(str(JOURNAL))).read().values() if job.label == "pull"
    )
    query = f"sacct --noheader --allocations --jobs={pull.id} --format=Partition,NodeList"
    assert cluster.run(query).stdout.split() == [online, "jrc0102"]
    used = json.loads(alice.path("results/smoke_test.json").read_text())["provenance"]["container"]
    kind = "Accept: application/vnd.docker.distribution.manifest.v2+json"
    manifest = "https://nvcr.io/v2/nvidia/jax/manifests/24.10-maxtext-py3"
    headers = cluster.run(["curl", "--silent", "--head", "--header", kind, manifest]).stdout
    assert f"docker-content-digest: {used['digest']}" in headers.lower()
    assert cluster.path(f"{SCRATCH}/jureca_containers/jax.sif").exists()
