"""Pulls from a registry that misbehaves: what pull.py says, leaves behind and fetches again.

Each test has its own repository in the registry (faulty_registry.py), so its own faults and log,
and two folders: one for the SIF, one for `--temporary`.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import COMMAND, Cluster

BASE = "/p/scratch/training/test_pull"
WORKFLOW = COMMAND.parents[2] / "workflow"
SERVER = Path(__file__).with_name("faulty_registry.py")
HOME = "/p/home/jusers/alice/jureca"
ALICE, TRAINING = 1001, 1000
SIF_FILES = {"x.sif", "x.sif.json", "x.sif.digest", "x.sif.lock"}
FOREVER: dict[str, tuple[dict[str, Any], str]] = {
    "error": ({"status": 500}, "500"),
    "reset": ({"path": "third", "cut": 0}, "connection"),
    "damage": ({"path": "third", "corrupt": True}, "damaged"),
}
Json = dict[str, Any]


def command_lines() -> dict[int, list[bytes]]:
    """Of all processes on this machine, so on all nodes."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[int(process.name)] = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
    return found


def processes(program: str, *words: str) -> list[int]:
    """Ids of the processes of a program with these words on the command line."""
    wanted = {word.encode() for word in words}
    lines = command_lines().items()
    return [p for p, line in lines if line[0].endswith(program.encode()) and wanted <= {*line}]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Pull:
    """A running `jaxway pull`; its environment goes through standard input: nobody else sees it."""

    def __init__(
        self, cluster: Cluster, node: str, user: str, options: dict[str, str], env: dict[str, str]
    ) -> None:
        words = [word for option in options.items() for word in option]
        self._line = ["python3", f"{BASE}/workflow/jaxway", "pull", *words]
        shell = 'while read -r variable; do export "$variable"; done; exec "$@"'
        setsid = ["bash", "-c", shell, "bash", "/usr/bin/setsid", "--wait", *self._line]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            cluster.argv(setsid, node, user),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write("".join(f"{name}={value}\n" for name, value in env.items()))
        self._process.stdin.close()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Waits until `reached` is true, which the pull must not end before."""
        deadline = time.monotonic() + 60
        while not reached():
            assert self.running, f"ended before {what}: {self.said()}"
            assert time.monotonic() < deadline, f"not within 60 s: {what}: {self.said()}"
            time.sleep(0.003)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; Ctrl-C reaches all processes of a terminal."""
        [process] = processes("python3", *self._line)
        (os.killpg if number == signal.SIGINT else os.kill)(process, number)

    def wait(self) -> int:
        """The exit code."""
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in 60 s: {self.said()}") from None

    def close(self) -> None:
        for process in processes("python3", *self._line):
            os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def succeed(self) -> str:
        """What it says in the end."""
        assert self.wait() == 0, self.said()
        assert "Traceback" not in self.said()
        return self.said()

    def fail(self, reason: str) -> str:
        """It must give this reason in one sentence."""
        assert self.wait() == 1, self.said()
        assert "Traceback" not in self.said()
        last = self.said().splitlines()[-1]
        assert re.fullmatch(rf"pull\.py: .*({reason}).*", last), self.said()
        return self.said()


class Registry:
    """The registry on the login node; its log and what it has."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        ready = json.loads((folder / "ready.json").read_text())
        self.port, self.proxy, self.tags = ready["port"], ready["proxy"], ready["tags"]
        self.layers: list[str] = ready["layers"]
        self.kept = dict(zip(ready["contents"], self.layers, strict=True))  # by its file's name
        [process] = processes("python3", f"{BASE}/registry/{SERVER.name}")
        self.node = Path(f"/proc/{process}/root")  # how this machine sees the login node's files

    def faults(self, *faults: Json) -> None:
        """What goes wrong from now on, instead of what did."""
        part = self.folder / "faults.part"
        part.write_text(json.dumps(faults))
        part.rename(self.folder / "faults.json")

    def log(self) -> list[Json]:
        lines = (self.folder / "log.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


class Place:
    """Where a test pulls to, and its repository."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry, self.name, self.cluster = registry, name, registry.cluster
        self.folder, self.pulls = f"{BASE}/{name}", list[Pull]()
        self.temporary, self.sif = f"{self.folder}/tmp", f"{self.folder}/sif/x.sif"
        for folder in (self.folder, self.temporary, f"{self.folder}/sif"):
            path = self.cluster.path(folder)
            path.mkdir()
            os.chown(path, ALICE, TRAINING)
            path.chmod(0o2775)

    def here(self, path: str) -> Path:
        """Where this machine has a file of the login node."""
        return self.registry.node / path.lstrip("/")

    def image(self, tag: str = "latest", scheme: str = "docker") -> str:
        separator = "@" if tag.startswith("sha256:") else ":"
        host = f"jrlogin01:{self.registry.port}"
        return f"{scheme}://{host}/{self.name}/tiny{separator}{tag}"

    def fault(self, path: str = "", **fault: Any) -> Json:
        """A fault of this repository; `path` may be "third" for the large layer."""
        layer = f"/blobs/{self.registry.layers[-1]}"
        return fault | {"path": f"/{self.name}/tiny{layer if path == 'third' else path}"}

    def start(
        self,
        image: str = "",
        node: str = Cluster.login,
        user: str = "alice",
        trusting: bool = True,
        temporary: bool = True,
        env: dict[str, str] | None = None,
    ) -> Pull:
        """Starts a pull; without `image`, of the latest from the test's own repository."""
        options = {"--image": image or self.image(), "--sif": self.sif}
        options |= {"--temporary": self.temporary} if temporary else {}
        trust = {"SSL_CERT_FILE": f"{BASE}/registry/ca.crt"} if trusting else {}
        pull = Pull(self.cluster, node, user, options, trust | (env or {}))
        self.pulls.append(pull)
        return pull

    def close(self) -> None:
        """Ends what a failed test left running."""
        for pull in self.pulls:
            pull.close()

    def log(self) -> list[Json]:
        """The answers to requests for this repository."""
        lines = self.registry.log()
        return [x for x in lines if f"/{self.name}/" in x.get("path", "") and "status" in x]

    def gets(self) -> list[Json]:
        """The answers that sent a layer or the rest of one."""
        wanted = tuple(self.registry.layers)
        return [x for x in self.log() if x["path"].endswith(wanted) and x["status"] in (200, 206)]

    def is_held(self) -> bool:
        return any(f"/{self.name}/" in line.get("held", "") for line in self.registry.log())

    def is_building(self) -> list[int]:
        return processes("apptainer", "build", f"{self.folder}/sif/.x.sif.part")

    def beside(self) -> set[str]:
        return {path.name for path in self.here(self.sif).parent.iterdir()}

    def finished_layers(self) -> set[str]:
        """Digests of the layers that are whole in the work folder."""
        found = self.here(self.temporary).rglob("?" * 64)  # no unfinished one, it could go now
        whole = {p.name for p in found if sha256(p) == p.name}
        return {layer for name, layer in self.registry.kept.items() if name in whole}

    def check_left(self) -> set[str]:
        """Digests of the layers that a failed pull left, for it must leave nothing else."""
        assert self.beside() <= {"x.sif.lock"}
        files = [p for p in self.here(self.temporary).rglob("*") if p.is_file()]
        assert [p for p in files if sha256(p) != p.name] == []
        assert not self.is_building()
        return self.finished_layers()

    def check_sif(self) -> Json:
        """The record of the SIF, which must be whole and leave nothing else."""
        assert self.beside() == SIF_FILES
        assert [*self.here(self.temporary).iterdir()] == []
        sif = self.here(self.sif)
        record: Json = json.loads(sif.with_name("x.sif.json").read_text())
        status = sif.stat()
        assert record["sha256"] == sha256(sif)
        assert (record["bytes"], record["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        assert sif.with_name("x.sif.digest").read_text() == f"{record['digest']}\n"
        return record

    def pull_again(self, kept: set[str], **options: Any) -> None:
        """Once nothing goes wrong a plain pull succeeds, and fetches only the layers not kept."""
        self.registry.faults()
        before = len(self.gets())
        self.start(**options).succeed()
        self.check_sif()
        fetched = [x["path"].rpartition("/")[2] for x in self.gets()[before:]]
        assert sorted(fetched) == sorted({*self.registry.layers} - kept)


# ------------------------------------------------------------------------------------ the fixtures


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


@pytest.fixture(scope="module")
def registry(cluster: Cluster) -> Iterator[Registry]:
    """The running registry; afterwards it has ended and all that the tests made is removed."""
    base = cluster.path(BASE)
    shutil.rmtree(base, ignore_errors=True)  # of a session that was killed
    folder = base / "registry"
    folder.mkdir(parents=True)
    shutil.copytree(WORKFLOW, base / "workflow")
    shutil.copy(SERVER, folder)
    make_certificates(folder)
    (folder / "faults.json").write_text("[]")
    for path in (base, folder, *folder.iterdir()):
        os.chown(path, ALICE, TRAINING)
    base.chmod(0o2775)
    line = ["python3", f"{BASE}/registry/{SERVER.name}", f"{BASE}/registry"]
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
def place(registry: Registry, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place of the test's own; no fault outlasts the test."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    place = Place(registry, name)
    yield place
    place.close()
    registry.faults()


@pytest.fixture(scope="module")
def good(registry: Registry) -> Iterator[Place]:
    """A place with a good SIF."""
    place = Place(registry, "good")
    place.start().succeed()
    yield place
    place.close()


@pytest.fixture(scope="module")
def archive(cluster: Cluster, registry: Registry) -> str:
    """The image as `docker save` writes it."""
    name = f"{BASE}/image.tar"
    line = [sys.executable, SERVER, "--archive", cluster.path(name)]
    subprocess.run(line, check=True)
    return name


@pytest.fixture(scope="module")
def forever(registry: Registry) -> Iterator[dict[str, Place]]:
    """Places of pulls that have failed for a fault that stays: all at once, for they wait long."""
    places = {name: Place(registry, f"forever-{name}") for name in FOREVER}
    registry.faults(*(places[name].fault(**fault) for name, (fault, _) in FOREVER.items()))
    pulls = {name: place.start() for name, place in places.items()}
    for name, pull in pulls.items():
        pull.fail(FOREVER[name][1])
    registry.faults()
    yield places
    for place in places.values():
        place.close()


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


# --------------------------------------------------------------------------------- what it pulls


@pytest.mark.parametrize("tag", ["latest", "index"])
def test_record_says_what_is_in_the_sif(place: Place, tag: str) -> None:
    place.start(place.image(tag)).succeed()
    record = place.check_sif()
    assert record["image"] == place.image(tag)
    assert record["digest"] == place.registry.tags[tag]
    assert record["labels"]["jaxway.test"] == "a label"
    assert [x["digest"] for x in record["layers"]] == place.registry.layers
    assert {f"squashfs-root/{x}" for x in ("first", "second", "third")} <= files_in(place)
    assert compressor(place) == 6


def files_in(place: Place) -> set[str]:
    start = place.here(place.sif).read_bytes().find(b"hsqs")
    return {*place.cluster.run(["unsquashfs", "-l", "-o", str(start), place.sif]).stdout.split()}


def test_layers_may_be_packed_in_any_way(place: Place) -> None:
    """By zstd, by gzip in two parts, not at all; and one of them is there twice."""
    place.start(place.image("mixed")).succeed()
    record = place.check_sif()
    assert {f"squashfs-root/{x}" for x in ("first", "second", "third")} <= files_in(place)
    first, second, third, again = (x["digest"] for x in record["layers"])
    assert again == second
    blobs = [x["path"].rpartition("/")[2] for x in place.log() if "/blobs/" in x["path"]]
    assert sorted(blobs[1:]) == sorted([first, second, third])  # after the configuration


def test_second_pull_has_nothing_to_do(good: Place) -> None:
    sif, requests = good.here(good.sif), len(good.gets())
    before = sif.stat()
    good.start().succeed()
    good.check_sif()
    assert len(good.gets()) == requests == 3
    assert (sif.stat().st_ino, sif.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_sif_in_a_registry_arrives_as_it_is(place: Place, good: Place) -> None:
    shutil.copy(good.here(good.sif), place.registry.folder / "image.sif")
    place.start(place.image("sif", "oras")).succeed()
    assert place.check_sif()["sha256"] == sha256(good.here(good.sif))


def test_archive_of_docker_becomes_a_sif(place: Place, archive: str) -> None:
    place.start(f"docker-archive:{archive}").succeed()
    place.check_sif()


def test_local_sif_arrives_as_it_is(place: Place, good: Place) -> None:
    place.start(good.sif).succeed()
    assert place.check_sif()["sha256"] == sha256(good.here(good.sif))


@pytest.mark.parametrize(
    ("tool", "stub"),
    [
        ("mksquashfs", 'case "$*" in *"comp zstd"*) exit 1;; esac; exec /usr/bin/mksquashfs "$@"'),
        ("squashfuse_ll", "exit 1"),
    ],
    ids=["make", "mount"],
)
def test_host_that_cannot_use_zstd_gets_gzip(place: Place, tool: str, stub: str) -> None:
    """A stub of the tool stands for a host whose own cannot make zstd, or mount it."""
    file = place.cluster.path(f"{place.folder}/bin") / tool
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{stub}\n")
    file.chmod(0o755)
    path = f"{place.folder}/bin:/p/software/jaxway/bin:/usr/bin:/bin"
    said = place.start(env={"PATH": path}).succeed()
    assert "taking gzip" in said
    place.check_sif()
    assert compressor(place) == 1


def compressor(place: Place) -> int:
    """Which compression the SIF's squashfs has, by its superblock: 1 is gzip, 6 is zstd."""
    content = place.here(place.sif).read_bytes()
    return int.from_bytes(content[content.find(b"hsqs") + 20 :][:2], "little")


def test_pinned_digest_is_pulled(place: Place) -> None:
    digest = place.registry.tags["latest"]
    place.start(place.image(digest)).succeed()
    assert place.check_sif()["digest"] == digest


def test_anybodys_token_is_fetched(place: Place) -> None:
    place.registry.faults(place.fault(auth="bearer"))
    place.start().succeed()
    place.check_sif()


def test_proxy_is_used(place: Place) -> None:
    host, proxy = f"jrlogin01:{place.registry.port}", f"http://jrlogin01:{place.registry.proxy}"
    connects = [x for x in place.registry.log() if x.get("method") == "CONNECT"]
    place.start(env={"https_proxy": proxy}).succeed()
    new = [x for x in place.registry.log() if x.get("method") == "CONNECT"][len(connects) :]
    assert {x["path"] for x in new} == {host}
    place.check_sif()


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 401}, "APPTAINER_DOCKER_USERNAME"),
        ({"auth": "basic", "credentials": "no"}, "APPTAINER_DOCKER_USERNAME"),
        ({"auth": "bearer", "credentials": "no"}, "APPTAINER_DOCKER_USERNAME"),
        ({"status": 403}, "APPTAINER_DOCKER_USERNAME"),
        ({"status": 404}, "has no latest"),
        ({"path": "third", "status": 404}, "has no sha256"),
    ],
    ids=["401", "basic", "bearer", "403", "404", "layer-404"],
)
def test_refusal_is_said_at_once(place: Place, fault: Json, reason: str) -> None:
    place.registry.faults(place.fault(**fault))
    place.start().fail(reason)
    assert Counter(x["path"] for x in place.log()).most_common(1)[0][1] <= 2  # 2 with a login
    place.pull_again(place.check_left())


def test_system_trusts_the_real_registry(place: Place) -> None:
    """So its 404 is seen, without SSL_CERT_FILE."""
    image = "docker://nvcr.io/nvidia/nothing:latest"
    place.start(image, trusting=False).fail("has no latest of nvidia/nothing")
    place.check_left()


def test_untrusted_certificate_is_said(place: Place) -> None:
    place.start(trusting=False).fail("SSL_CERT_FILE")
    assert place.check_left() == set()
    place.pull_again(set())


@pytest.mark.parametrize(
    ("node", "host"), [("jrlogin01", "no-such-host.invalid"), ("jrc0101", "nvcr.io")]
)
def test_unknown_host_is_said(place: Place, node: str, host: str) -> None:
    place.start(f"docker://{host}/nvidia/jax:26.06-py3", node=node).fail(
        f"{host}.*compute nodes.*login node"
    )
    assert place.check_left() == set()


def test_unreachable_proxy_is_said_and_no_proxy_avoids_it(place: Place) -> None:
    nowhere = "http://jrlogin01:1"
    place.start(env={"https_proxy": nowhere}).fail("https_proxy")
    assert place.check_left() == set()
    place.pull_again(set(), env={"https_proxy": nowhere, "no_proxy": "jrlogin01"})


@pytest.mark.parametrize("tag", ["arm64", "arm64-index"])
def test_wrong_architecture_is_said(place: Place, tag: str) -> None:
    place.start(place.image(tag)).fail("arm64.*amd64")
    assert place.check_left() == set()
    assert place.gets() == []


@pytest.mark.parametrize("pinned", ["latest", "index"])
def test_other_manifest_than_the_digests_is_refused(place: Place, pinned: str) -> None:
    """By a digest in the image's name, and by one in an index."""
    tag, digest = place.registry.tags["latest"], "manifests/sha256:"
    place.registry.faults(place.fault(f"/{digest}", serve="other"))
    place.start(place.image(tag if pinned == "latest" else "index")).fail(tag)
    assert place.check_left() == set()
    assert place.gets() == []


def test_missing_group_is_said(place: Place) -> None:
    stub = place.cluster.path(f"{place.folder}/stub")
    stub.mkdir()
    (stub / "apptainer").write_text(
        "#!/bin/sh\n# A stub: what JSC's apptainer says to who has not signed.\n"
        "echo User alice is not in group container and hence not authorized to use apptainer >&2\n"
        "echo Please visit JUDOOR to sign the Container Service Level Description >&2\n"
        "exit 1\n"
    )
    (stub / "apptainer").chmod(0o755)
    place.start(env={"PATH": f"{place.folder}/stub:/p/software/jaxway/bin:/usr/bin:/bin"}).fail(
        "JuDoor.*agree"
    )
    place.pull_again(place.check_left())


def test_missing_apptainer_is_said(place: Place) -> None:
    place.start(env={"PATH": "/p/software/jaxway/bin"}).fail("no apptainer in PATH")
    place.pull_again(place.check_left())


def test_missing_work_folder_is_said(place: Place) -> None:
    place.here(place.temporary).rmdir()
    place.start().fail(place.temporary)
    assert place.beside() <= {"x.sif.lock"}
    place.here(place.temporary).mkdir(mode=0o2777)
    place.here(place.temporary).chmod(0o2777)
    place.pull_again(set())


def test_missing_archive_is_said(place: Place) -> None:
    place.start("docker-archive:/p/scratch/training/none.tar").fail("none.tar")
    assert place.check_left() == set()


# ----------------------------------------------------------------------------- what passes or not


@pytest.mark.parametrize("path", ["/manifests/latest", "third"])
def test_waits_as_long_as_the_registry_asks(place: Place, path: str) -> None:
    fault = place.fault(path, status=429, headers={"Retry-After": "3"}, times=1)
    place.registry.faults(fault)
    place.start().succeed()
    place.check_sif()
    first, second, *_ = [x for x in place.log() if re.search(fault["path"], x["path"])]
    assert (first["status"], second["status"]) == (429, 200)
    assert second["time"] - first["time"] >= 3


def test_two_server_errors_are_survived(place: Place) -> None:
    place.registry.faults(place.fault("/manifests/", status=500, times=2))
    place.start().succeed()
    place.check_sif()
    assert [x["status"] for x in place.log()][:3] == [500, 500, 200]


def test_reset_layer_begins_anew_where_the_registry_knows_no_ranges(place: Place) -> None:
    cut = place.fault("third", cut=5_000_000, times=1)
    place.registry.faults(place.fault("third", whole=True), cut)
    place.start().succeed()
    place.check_sif()
    assert [x["status"] for x in place.gets()] == [200] * 4


def test_reset_layer_goes_on_where_it_stopped(place: Place) -> None:
    place.registry.faults(place.fault("third", cut=5_000_000, times=1))
    place.start().succeed()
    place.check_sif()
    first, second = [x for x in place.gets() if x["path"].endswith(place.registry.layers[-1])]
    assert (first["range"], second["status"]) == (None, 206)
    assert int(second["range"].removeprefix("bytes=").removesuffix("-")) >= 4_000_000
    assert len(place.gets()) == 4


def test_damaged_layer_is_fetched_again(place: Place) -> None:
    place.registry.faults(place.fault("third", corrupt=True, times=1))
    place.start().succeed()
    place.check_sif()
    paths = Counter(x["path"].rpartition("/")[2] for x in place.gets())
    assert [paths[x] for x in place.registry.layers] == [1, 1, 2]


@pytest.mark.parametrize("name", FOREVER)
def test_fault_that_stays_is_said(forever: dict[str, Place], name: str) -> None:
    place = forever[name]
    kept = place.check_left()
    assert kept == ({*place.registry.layers[:2]} if name != "error" else set())
    place.pull_again(kept)


# -------------------------------------------------------------------------------- full, forbidden


@pytest.mark.parametrize(
    ("where", "options", "larger"),
    [
        ("tmp", "size=4m", "size=200m"),
        ("sif", "size=4m", "size=200m"),
        ("tmp", "nr_inodes=8", "nr_inodes=9999"),
        ("sif", "nr_inodes=2", "nr_inodes=9999"),
        ("sif", "nr_inodes=3", "nr_inodes=9999"),
    ],
    ids=["work", "sif", "inodes", "sif-inodes", "record-inodes"],
)
def test_full_place_is_said(
    place: Place,
    small: Callable[..., None],
    where: str,
    options: str,
    larger: str,
) -> None:
    folder = f"{place.folder}/{where}"
    small(folder, options)
    place.start().fail("make room there")
    kept = place.check_left()
    small(folder, larger, change=True)
    place.pull_again(kept)


def test_work_folder_is_where_there_is_room(place: Place, small: Callable[..., None]) -> None:
    """Without --temporary: in the first of the usual places that is large enough."""
    full = f"{place.folder}/full"
    place.cluster.run(["mkdir", full])
    small(full, "size=4m")
    place.registry.faults(place.fault("third", hold=True))
    env = {"APPTAINER_TMPDIR": full, "TMPDIR": place.temporary}
    pull = place.start(temporary=False, env=env)
    pull.until(place.is_held, "a layer")
    assert [*place.here(full).iterdir()] == []
    [work] = place.here(place.temporary).iterdir()
    assert re.fullmatch(f"jaxway-{ALICE}-[0-9a-f]{{8}}", work.name)
    assert work.stat().st_mode & 0o077 == 0
    place.registry.faults()
    pull.succeed()
    place.check_sif()


def test_forbidden_place_is_said(place: Place) -> None:
    folder = place.here(place.sif).parent
    folder.chmod(0o755)
    place.start(user="bob").fail(f"{place.folder}/sif.*[Pp]ermission")
    assert place.check_left() == set()
    folder.chmod(0o2775)
    place.pull_again(set(), user="bob")


# ------------------------------------------------------------------------------------ interrupted


def interrupt(place: Place, moment: str, number: signal.Signals) -> Pull:
    """A pull that got a signal while it waited for a layer or made the SIF."""
    place.registry.faults(*([place.fault("third", hold=True)] if moment == "download" else []))
    pull = place.start()
    pull.until(place.is_held if moment == "download" else place.is_building, moment)
    pull.send(number)
    return pull


@pytest.mark.parametrize("moment", ["download", "build"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_pull_leaves_only_layers(
    place: Place, moment: str, number: signal.Signals
) -> None:
    interrupt(place, moment, number).fail("SIGTERM|SIGINT|Ctrl-C")
    kept = place.check_left()
    assert moment == "download" or kept == {*place.registry.layers}
    place.pull_again(kept)


@pytest.mark.parametrize("moment", ["download", "build"])
def test_killed_pull_is_cleaned_up_by_the_next(place: Place, moment: str) -> None:
    assert interrupt(place, moment, signal.SIGKILL).wait()
    place.cluster.wait_for(lambda: not place.is_building(), what="the end of apptainer")
    assert place.beside() <= {"x.sif.lock", ".x.sif.part"}
    kept = place.finished_layers()
    assert moment == "download" or kept == {*place.registry.layers}
    place.pull_again(kept)


def test_another_user_goes_on_after_a_killed_pull(place: Place) -> None:
    """And may make the SIF anew when the image has changed."""
    assert interrupt(place, "build", signal.SIGKILL).wait()
    place.cluster.wait_for(lambda: not place.is_building(), what="the end of apptainer")
    for tag in ("latest", "index"):
        place.start(place.image(tag), user="bob").succeed()
        assert place.beside() == SIF_FILES
        digest = place.here(place.sif).with_name("x.sif.digest").read_text()
        assert digest == f"{place.registry.tags[tag]}\n"
    place.start(place.image("index")).succeed()
    place.check_sif()


@pytest.mark.parametrize("moment", ["request", "build"])
def test_old_sif_survives_a_failed_pull(place: Place, good: Place, moment: str) -> None:
    place.cluster.run(f"cp --preserve {good.folder}/sif/* {place.folder}/sif")
    record = place.here(place.sif).with_name("x.sif.json")
    record.write_text(record.read_text().replace(place.registry.tags["latest"], "sha256:old"))
    files = [place.here(place.sif).parent / name for name in SIF_FILES]
    before = {file: (sha256(file), file.stat().st_mtime_ns) for file in files}
    if moment == "build":
        interrupt(place, moment, signal.SIGTERM).fail("SIGTERM")
    else:
        place.registry.faults(place.fault(status=404))
        place.start().fail("has no latest")
    assert {file: (sha256(file), file.stat().st_mtime_ns) for file in files} == before
    assert place.beside() == SIF_FILES
    place.pull_again(place.finished_layers())


# ------------------------------------------------------------------------------------ two at once


@pytest.mark.parametrize(("user", "node"), [("bob", "jrlogin01"), ("alice", "jrc0101")])
def test_two_pulls_at_once_fetch_each_layer_once(place: Place, user: str, node: str) -> None:
    place.registry.faults(place.fault("third", hold=True))
    first = place.start()
    first.until(place.is_held, "a layer")
    second = place.start(user=user, node=node)
    second.until(lambda: "is being made already" in second.said(), "waiting")
    place.registry.faults()
    first.succeed()
    second.succeed()
    place.check_sif()
    fetched = sorted(x["path"].rpartition("/")[2] for x in place.gets())
    assert fetched == sorted(place.registry.layers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_waiting_pull_and_the_first_do_not_need_each_other(
    place: Place, number: signal.Signals
) -> None:
    """The first ends well when the waiting one is ended; that goes on when the first is killed."""
    place.registry.faults(place.fault("third", hold=True))
    first = place.start()
    first.until(lambda: place.is_held() and len(place.finished_layers()) == 2, "two layers")
    [process] = processes("python3", "--sif", place.sif)
    second = place.start()
    second.until(lambda: "is being made already" in second.said(), "waiting")
    if number == signal.SIGTERM:
        [process] = {*processes("python3", "--sif", place.sif)} - {process}
    place.registry.faults()
    os.kill(process, number)
    if number == signal.SIGTERM:
        second.fail("SIGTERM")
        first.succeed()
    else:
        assert first.wait()
        second.succeed()
    place.check_sif()
    paths = Counter(x["path"].rpartition("/")[2] for x in place.gets())
    assert [paths[x] for x in place.registry.layers[:2]] == [1, 1]


# ------------------------------------------------------------------------------------ credentials


@pytest.fixture
def auth_file(registry: Registry) -> Iterator[Path]:
    """Where a login of alice's would be kept; there is none."""
    file = registry.cluster.path(f"{HOME}/.apptainer/docker-config.json")
    assert not file.exists()
    if not file.parent.exists():
        file.parent.mkdir()
        os.chown(file.parent, ALICE, TRAINING)
    yield file
    file.unlink(missing_ok=True)


def files_with(cluster: Cluster, hidden: list[str], since: float) -> set[str]:
    """The login node's files that were written since then and hold one of these strings."""
    folders = f"/p/scratch /p/project1 {HOME} /tmp /var/tmp /dev/shm"
    search = "grep --files-with-matches --no-messages --fixed-strings -f /dev/stdin {} +"
    line = f"find {folders} -type f -newerct @{since} -exec env LC_ALL=C {search}"
    return {*cluster.run(line, user="root", check=False, input="\n".join(hidden)).stdout.split()}


@pytest.mark.parametrize("source", ["environment", "file"])
@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_password_is_nowhere(place: Place, auth_file: Path, source: str, scheme: str) -> None:
    password = f"canary-{secrets.token_hex(16)}"
    both = base64.b64encode(f"user:{password}".encode()).decode()
    digest = hashlib.sha256(both.encode()).hexdigest()  # all that the registry knows
    hidden = [password, both, hashlib.sha256(f"token for {digest}".encode()).hexdigest()]
    env, allowed, since = {}, set(), time.time() - 1
    if source == "environment":
        env = {"APPTAINER_DOCKER_USERNAME": "user", "APPTAINER_DOCKER_PASSWORD": password}
    else:
        host = f"jrlogin01:{place.registry.port}"
        auth_file.write_text(json.dumps({"auths": {host: {"auth": both}}}))
        os.chown(auth_file, ALICE, TRAINING)
        allowed = {f"{HOME}/.apptainer/docker-config.json"}
    demand = place.fault(auth=scheme, credentials=digest)
    place.registry.faults(demand, place.fault("third", hold=True))

    pull = place.start(env=env)
    pull.until(place.is_held, "a layer")
    seen = [*command_lines().values()]
    assert files_with(place.cluster, hidden, since) == allowed
    place.registry.faults(demand)
    while pull.running:
        seen += command_lines().values()
    said = pull.succeed()
    place.check_sif()
    assert files_with(place.cluster, hidden, since) == allowed
    for text in (said.encode(), *(b" ".join(line) for line in seen)):
        assert not [x for x in hidden if x.encode() in text]


def test_another_host_gets_no_credentials(place: Place) -> None:
    """Registries send clients to a storage elsewhere for the layers."""
    digest = hashlib.sha256(base64.b64encode(b"user:password")).hexdigest()
    demand = place.fault(auth="bearer", credentials=digest) | {"path": f"^/v2/{place.name}/"}
    away = place.fault("/blobs/", redirect="localhost") | {"path": f"^/v2/{place.name}/tiny/blobs/"}
    place.registry.faults(demand, away)
    env = {"APPTAINER_DOCKER_USERNAME": "user", "APPTAINER_DOCKER_PASSWORD": "password"}
    place.start(env=env).succeed()
    place.check_sif()
    assert {x["authorization"] for x in place.gets()} == {False}


def test_storage_that_asks_gets_no_credentials(place: Place) -> None:
    """A registry that is not trusted with more than this could send clients to a thief."""
    away = place.fault(redirect="localhost") | {"path": f"^/v2/{place.name}/tiny/blobs/"}
    thief = {"path": f"^/elsewhere/{place.name}/", "auth": "bearer", "credentials": 64 * "0"}
    place.registry.faults(away, thief)
    env = {"APPTAINER_DOCKER_USERNAME": "user", "APPTAINER_DOCKER_PASSWORD": "password"}
    place.start(env=env).fail("APPTAINER_DOCKER_USERNAME")
    assert any("/elsewhere/" in x["path"] for x in place.log())
    assert not any(x["authorization"] for x in place.log())


@pytest.mark.parametrize("tag", ["path", "tag", "content"])
def test_part_that_no_digest_names_is_refused(place: Place, tag: str) -> None:
    place.start(place.image(tag)).fail("names a part of the image")
    assert place.check_left() == set()


def test_what_is_no_image_is_said(place: Place) -> None:
    place.registry.faults(place.fault("/manifests/latest", corrupt=True))
    place.start().fail("sent something that is no image")
    assert place.check_left() == set()


def test_other_number_of_layers_than_in_the_configuration_is_said(place: Place) -> None:
    place.start(place.image("short")).fail("sent something that is no image")
    assert place.check_left() == set()


def test_file_that_is_no_sif_is_said(place: Place) -> None:
    place.cluster.run(f"echo hello > {place.folder}/fake.sif")
    place.start(f"{place.folder}/fake.sif").fail("fake.sif is no SIF")
    assert place.check_left() == set()


def test_layer_arrives_over_a_line_that_breaks_again_and_again(place: Place) -> None:
    """More often than a pull tries in vain: each time some more of it is here."""
    place.registry.faults(place.fault("third", cut=2_000_000))
    place.start().succeed()
    place.check_sif()
    assert len(place.gets()) > 3 + 5
