"""The registry, for all tests of pulls, and a target for each."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import COMMAND, Cluster
from pulls import ALICE, BASE, FOREVER, PROGRAMS, TRAINING, Registry, Target, processes


def make_certificates(folder: Path) -> None:
    """An authority (ca.crt) and its certificate for the registry (crt and key)."""
    new = "openssl req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout"
    # Python 3.13 trusts no authority that does not say what its key is for.
    authority = "-subj /CN=test-pull-CA -addext keyUsage=critical,keyCertSign"
    names = "-addext subjectAltName=DNS:jrlogin01,DNS:localhost"
    signed = "-addext basicConstraints=critical,CA:FALSE -CA ca.crt -CAkey ca.key"
    for line in (
        f"{new} ca.key -out ca.crt {authority}",
        f"{new} key -out crt -subj /CN=jrlogin01 {names} {signed}",
    ):
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="package")
def registry(cluster: Cluster) -> Iterator[Registry]:
    """The running registry; afterwards it has ended and all that the tests made is removed."""
    base = cluster.path(BASE)
    shutil.rmtree(base, ignore_errors=True)  # of a session that was killed
    folder = base / "registry"
    folder.mkdir(parents=True)
    shutil.copytree(COMMAND.parents[2] / "workflow", base / "workflow")
    for program in PROGRAMS:
        shutil.copy(program, folder)
    make_certificates(folder)
    (folder / "faults.json").write_text("[]")
    for path in (base, folder, *folder.iterdir()):
        os.chown(path, ALICE, TRAINING)
    base.chmod(0o2775)
    line = ["python3", f"{BASE}/registry/{PROGRAMS[0].name}", f"{BASE}/registry"]
    with (base / "output").open("w") as output:
        server = subprocess.Popen(cluster.argv(line), stdout=output, stderr=output)
    try:
        cluster.wait_for((folder / "ready.json").exists, what="the registry")
        started = Registry(cluster, folder)
        url = f"https://jrlogin01:{started.port}/v2/"
        cluster.run(f"curl --silent --fail --cacert {BASE}/registry/ca.crt {url}")
        yield started
    finally:
        server.kill()  # hangs it up
        server.wait()
        cluster.wait_for(lambda: not processes("python3", *line[1:]), what="the registry's end")
        shutil.rmtree(base)


@pytest.fixture
def target(registry: Registry, request: pytest.FixtureRequest) -> Iterator[Target]:
    """A target of the test's own; no fault outlasts the test."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    target = Target(registry, name)
    yield target
    target.close()
    registry.faults()


@pytest.fixture(scope="package")
def good(registry: Registry) -> Iterator[Target]:
    """A target with a good SIF."""
    target = Target(registry, "good")
    target.start().succeed()
    yield target
    target.close()


@pytest.fixture(scope="package")
def archive(cluster: Cluster, registry: Registry) -> str:
    """The image as `docker save` writes it."""
    name = f"{BASE}/image.tar"
    line = [sys.executable, PROGRAMS[1], cluster.path(name)]
    subprocess.run(line, check=True)
    return name


@pytest.fixture(scope="package")
def forever(registry: Registry) -> Iterator[dict[str, Target]]:
    """Targets of pulls that have failed for a fault that stays: all at once, for they wait long."""
    targets = {name: Target(registry, f"forever-{name}") for name in FOREVER}
    registry.faults(*(targets[name].fault(**fault) for name, (fault, _) in FOREVER.items()))
    pulls = {name: target.start() for name, target in targets.items()}
    for name, pull in pulls.items():
        pull.fail(FOREVER[name][1])
    registry.faults()
    yield targets
    for target in targets.values():
        target.close()


@pytest.fixture
def small(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Mounts a small file system at a folder of the login node, or changes its size."""
    mounted = []

    def mount(folder: str, options: str, change: bool = False) -> None:
        what = f"remount,{options}" if change else f"mode=2777,{options} -t tmpfs tmpfs"
        cluster.run(f"mount -o {what} {folder}", user="root")
        if not change:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        cluster.run(f"umount {folder}", user="root")
