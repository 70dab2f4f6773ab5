"""Two users with two images in one $SCRATCH: each computes in its own, whatever the other pulls."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Checkout, Cluster

SCRATCH = "/p/scratch/training/two-users"
SHARED = f"{SCRATCH}/jureca_containers"
TAGS = {"alice": "24.10-maxtext-py3", "bob": "26.06-py3"}
VERSIONS = {"alice": "0.4.33", "bob": "0.10.2"}  # of JAX

pytestmark = pytest.mark.usefixtures("repaired")


class Reader(threading.Thread):
    """Looks at the link all the time: where it led, and whether it ever led nowhere."""

    def __init__(self, link: Path) -> None:
        super().__init__(daemon=True)
        self.link, self.ended = link, threading.Event()
        self.seen, self.problems = set[str](), list[OSError]()

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self.seen.add(os.readlink(self.link))
                os.stat(self.link)
            except OSError as error:
                if self.seen:
                    self.problems.append(error)
            time.sleep(0.001)


@pytest.fixture(scope="module")
def users(cluster: Cluster) -> Iterator[dict[str, Checkout]]:
    """A checkout of each, with the image that each wants."""
    cluster.run(f"rm -rf {SCRATCH}; mkdir -m 2775 {SCRATCH}", user="root")
    cluster.run(f"chown alice:training {SCRATCH}", user="root")
    checkouts = {user: Checkout(cluster, user, "images") for user in TAGS}
    for user, checkout in checkouts.items():
        checkout.configure("image", {"image": f"docker://nvcr.io/nvidia/jax:{TAGS[user]}"})
    yield checkouts
    cluster.run(["rm", "-rf", SCRATCH, *(x.folder for x in checkouts.values())], user="root")


def run(checkout: Checkout, *arguments: str) -> str:
    with checkout.start("image.yaml", *arguments, SCRATCH=SCRATCH) as snakemake:
        code, output = snakemake.wait(400)
    assert code == 0, output
    return output


def check_image(checkout: Checkout) -> str:
    """That the smoke test ran in the user's own image; its digest."""
    found = json.loads(checkout.path("results/smoke_test.json").read_text())["provenance"]
    assert found["jax"] == VERSIONS[checkout.user]
    assert found["container"]["image"].endswith(f":{TAGS[checkout.user]}")
    locked = checkout.path("results/container/jax.sif.digest").read_text().strip()
    assert found["container"]["digest"] == locked
    return locked


def test_two_users_pull_and_compute_at_once(cluster: Cluster, users: dict[str, Checkout]) -> None:
    reader = Reader(cluster.path(f"{SHARED}/jax.sif"))
    reader.start()
    started = [
        checkout.start("image.yaml", "smoke_test", SCRATCH=SCRATCH) for checkout in users.values()
    ]
    for snakemake in started:
        with snakemake:
            code, output = snakemake.wait(400)
        assert code == 0, output
    digests = {check_image(checkout) for checkout in users.values()}
    assert len(digests) == 2
    # Each of them pulls once more, so that the link moves, and the other's jobs run meanwhile.
    for user, checkout in users.items():
        (other,) = (x for name, x in users.items() if name != user)
        with other.start(
            "image.yaml", "smoke_test", "--forcerun=smoke_test", SCRATCH=SCRATCH
        ) as snakemake:
            output = run(checkout, "pull", "--forcerun=pull")
            assert "already" in output
            assert TAGS[user] in os.readlink(reader.link)
            assert snakemake.wait(300)[0] == 0, snakemake.output()
        check_image(other)
        assert "Nothing to be done" in run(checkout, "smoke_test", "--dry-run")
    reader.ended.set()
    reader.join()
    assert len(reader.seen) == 2
    assert reader.problems == []


def test_what_is_there_is_pulled_by_nobody_else(
    cluster: Cluster, users: dict[str, Checkout]
) -> None:
    third = Checkout(cluster, "bob", "third")
    third.configure("image", {"image": f"docker://nvcr.io/nvidia/jax:{TAGS['alice']}"})
    sifs = {path: path.stat().st_ino for path in cluster.path(SHARED).glob("jax-*.sif")}
    assert "pulled before" in run(third, "pull")
    assert {path: path.stat().st_ino for path in cluster.path(SHARED).glob("jax-*.sif")} == sifs
    command = f"cd {third.folder}; SCRATCH={SCRATCH} SBATCH_ACCOUNT=training"
    command += " .venv/bin/jaxway images --profile profiles/jureca"
    listed = cluster.run(command, user="bob").stdout.splitlines()
    # The newest is the last: whose pull ended later.
    assert {x.split("-")[1] for x in listed if x.startswith("jax-")} == {"24.10", "26.06"}
    runs = [f"    run {x.folder}/results/container/jax.sif" for x in (users["alice"], third)]
    at = next(n for n, line in enumerate(listed) if line.startswith("jax-24.10"))
    assert sorted(listed[at + 2 : at + 4]) == sorted(runs)
    cluster.run(["rm", "-rf", third.folder], user="root")
