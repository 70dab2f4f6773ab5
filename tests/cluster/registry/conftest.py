"""The registry, for all tests of pulls, and a target for each."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from nodes import COMMAND, Cluster
from pulls import ALICE, BASE, PROGRAMS, TRAINING, Registry, Target, processes
from repositories import make_certificates


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
    make_certificates(folder, "DNS:jrlogin01", "DNS:localhost")
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
