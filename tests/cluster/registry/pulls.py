"""What tests of pulls use: a running pull, the registry that misbehaves, and a target.

Each test has a target of its own: a repository in the registry, so its own faults and log, and two
folders, one for the SIF, one for `--tmpdir`.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import repositories
from enter import run_folder
from nodes import BUSY, COMMAND, Cluster
from repositories import Json

BASE = "/p/scratch/training/test_pull"
PROGRAMS = [COMMAND.parents[1] / f"helpers/{x}.py" for x in ("faulty_registry", "tiny_image")]
HOME = "/p/home/jusers/alice/jureca"
ALICE, TRAINING = 1001, 1000
LIMIT_S = 60 * BUSY
LOCK_RE = re.compile(r"\.x-[0-9a-f]{12}\.sif\.lock")


def command_lines() -> dict[int, list[bytes]]:
    """Of all processes on this machine, so on all nodes, and on those of other test clusters."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[int(process.name)] = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
    return found


def is_child(process: int, processes: Collection[int]) -> bool:
    """Whether one of the processes has started this one; also when it has ended meanwhile."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True
    return int(status.rpartition(")")[2].split()[1]) in processes


def is_on_a_node(process: int) -> bool:
    """Whether it runs on a node of this cluster, and so sees its shared folder."""
    try:
        return os.path.samefile(f"/proc/{process}/root/p/home", run_folder() / "shared/home")
    except OSError:
        return False  # it ended meanwhile, or there is no such folder


def processes(program: str, *words: str) -> list[int]:
    """Ids of the processes of a program with these words on the command line.

    Without a child of theirs that is about to become another program.
    """
    wanted = {word.encode() for word in words}
    lines = command_lines().items()
    found = [p for p, line in lines if line[0].endswith(program.encode()) and wanted <= {*line}]
    return [p for p in found if is_on_a_node(p) and not is_child(p, found)]


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

    def output(self) -> str:
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Waits until `reached` is true, which the pull must not end before."""
        deadline = time.monotonic() + LIMIT_S
        while not reached():
            assert self.running, f"ended before {what}: {self.output()}"
            assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}: {self.output()}"
            time.sleep(0.003)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; Ctrl-C reaches all processes of a terminal."""
        [process] = processes("python3", *self._line)
        (os.killpg if number == signal.SIGINT else os.kill)(process, number)

    def wait(self) -> int:
        """The exit code."""
        try:
            return self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {LIMIT_S} s: {self.output()}") from None

    def close(self) -> None:
        for process in processes("python3", *self._line):
            os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._output.close()

    def succeed(self) -> str:
        """Its output; it must succeed."""
        assert self.wait() == 0, self.output()
        assert "Traceback" not in self.output()
        return self.output()

    def fail(self, reason: str) -> str:
        """Its output; it must give this reason in one sentence."""
        assert self.wait() == 1, self.output()
        assert "Traceback" not in self.output()
        last = self.output().splitlines()[-1]
        assert re.fullmatch(rf"jaxway pull: .*({reason}).* \[JW\d{{3}}\]", last), self.output()
        return self.output()


class Registry(repositories.Registry):
    """The registry on the login node."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(folder, cluster.login)
        self.cluster = cluster
        [process] = processes("python3", f"{BASE}/registry/{PROGRAMS[0].name}")
        self.node = Path(f"/proc/{process}/root")  # how this machine sees the login node's files


class Target(repositories.Repository):
    """Where a test pulls to, and its repository."""

    registry: Registry

    def __init__(self, registry: Registry, name: str) -> None:
        super().__init__(registry, name)
        self.cluster = registry.cluster
        self.folder, self.pulls = f"{BASE}/{name}", list[Pull]()
        self.tmpdir, self.sif = f"{self.folder}/tmp", f"{self.folder}/sif/x.sif"
        self.part = f"{self.folder}/sif/.x-{registry.tags['latest'][7:19]}.sif.part"
        for folder in (self.folder, self.tmpdir, f"{self.folder}/sif"):
            path = self.cluster.path(folder)
            path.mkdir()
            os.chown(path, ALICE, TRAINING)
            path.chmod(0o2775)

    def here(self, path: str) -> Path:
        """Where this machine has a file of the login node."""
        return self.registry.node / path.lstrip("/")

    def start(
        self,
        image: str = "",
        node: str = Cluster.login,
        user: str = "alice",
        trusting: bool = True,
        tmpdir: bool = True,
        env: dict[str, str] | None = None,
    ) -> Pull:
        """Starts a pull; without `image`, of the latest from the test's own repository."""
        options = {"--image": image or self.image(), "--sif": self.sif}
        options |= {"--tmpdir": self.tmpdir} if tmpdir else {}
        trust = {"SSL_CERT_FILE": f"{BASE}/registry/ca.crt"} if trusting else {}
        pull = Pull(self.cluster, node, user, options, trust | (env or {}))
        self.pulls.append(pull)
        return pull

    def close(self) -> None:
        """Ends what a failed test left running."""
        for pull in self.pulls:
            pull.close()

    def is_held(self) -> bool:
        return any(f"/{self.name}/" in line.get("held", "") for line in self.registry.log())

    def is_building(self) -> list[int]:
        return processes("apptainer", "build", self.part)

    def beside(self) -> set[str]:
        return {path.name for path in self.here(self.sif).parent.iterdir()}

    def finished_layers(self) -> set[str]:
        """Digests of the layers that are whole in the work folder."""
        found = self.here(self.tmpdir).rglob("?" * 64)  # no unfinished one, it could go now
        whole = {p.name for p in found if sha256(p) == p.name}
        return {layer for name, layer in self.registry.stored.items() if name in whole}

    def check_leftovers(self) -> set[str]:
        """Digests of the layers that a failed pull left, for it must leave nothing else."""
        assert [name for name in self.beside() if not LOCK_RE.fullmatch(name)] == []
        files = [p for p in self.here(self.tmpdir).rglob("*") if p.is_file()]
        assert [p for p in files if sha256(p) != p.name] == []
        assert not self.is_building()
        return self.finished_layers()

    def made(self) -> Path:
        """The SIF to which the link leads."""
        link = self.here(self.sif)
        return link.with_name(os.readlink(link))

    def check_sif(self, others: Collection[Path] = ()) -> Json:
        """The record of the SIF, which must be whole, with nothing else but others beside it."""
        made = self.made()
        sifs = {made, *others}
        files = {f"{sif.name}{end}" for sif in sifs for end in ("", ".json", ".digest")}
        assert {name for name in self.beside() if not LOCK_RE.fullmatch(name)} == {"x.sif", *files}
        assert [*self.here(self.tmpdir).iterdir()] == []
        record: Json = json.loads(made.with_name(f"{made.name}.json").read_text())
        status = made.stat()
        assert record["sha256"] == sha256(made)
        assert made.name.endswith(f"-{record['digest'][7:19]}.sif")
        assert (record["bytes"], record["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        assert made.with_name(f"{made.name}.digest").read_text() == f"{record['digest']}\n"
        return record

    def pull_again(self, kept: set[str], **options: Any) -> None:
        """Once nothing goes wrong a plain pull succeeds, and fetches only the layers not kept."""
        self.registry.faults()
        before = len(self.gets())
        self.start(**options).succeed()
        self.check_sif()
        fetched = [x["path"].rpartition("/")[2] for x in self.gets()[before:]]
        assert sorted(fetched) == sorted({*self.registry.layers} - kept)
