"""The registry that misbehaves, in this process and over TLS, and pulls whose Apptainer is none."""

import gc
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import faulty_registry
import pytest
from jaxway.config.containers import digest_path, record_path
from jaxway.container import image_name, pull
from jaxway.container import registry as registry_module
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError
from repositories import Registry, Repository, make_certificates

HEADER = b"a SIF of "
# Of the shell: where they lead, and whom they trust, is not this registry.
PROXIES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
VARIABLES = (*PROXIES, *map(str.upper, PROXIES), "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The running registry."""
    gc.freeze()  # each test collects garbage, of which none is in what has been imported
    folder = tmp_path_factory.mktemp("registry")
    make_certificates(folder, "DNS:localhost", "IP:127.0.0.1")
    (folder / "faults.json").write_text("[]")
    servers = faulty_registry.start(folder)
    running = Registry(folder, "localhost")
    running.content = servers[0].content
    yield running
    gc.unfreeze()
    for server in servers:
        server.shutdown()
        server.server_close()


class Clock:
    """A clock in place of the module `time`: it remembers pauses and makes none."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


def build(command: str, *words: str | Path, work: Path) -> None:
    """What Apptainer would build a SIF from: an OCI layout, of which every part is what its name
    says."""
    part, layout = Path(words[-2]), Path(str(words[-1]).removeprefix("oci:"))

    def blob(described: dict[str, Any]) -> bytes:
        content = (layout / "blobs" / described["digest"].replace(":", "/")).read_bytes()
        assert described["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert described["size"] == len(content)
        return content

    (index,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(index))
    for described in (manifest["config"], *manifest["layers"]):
        blob(described)
    part.write_bytes(HEADER + index["digest"].encode())


def header(command: list[str | Path], **_: Any) -> CompletedProcess[str]:
    """`apptainer sif header`."""
    *words, file = command
    assert words == ["apptainer", "sif", "header"]
    return CompletedProcess(words, not Path(file).read_bytes().startswith(HEADER))


class Target(Repository):
    """Where a test pulls to, and its repository."""

    def __init__(self, registry: Registry, name: str, folder: Path) -> None:
        super().__init__(registry, name)
        self.tmpdir, self.sif = folder / "tmp", folder / "sif/x.sif"
        self.tmpdir.mkdir()
        self.sif.parent.mkdir()
        self.clock = Clock()

    def pull(self, image: str = "", key: Path | None = None) -> ContainerRecord:
        """Pulls; the SIF's record. The SIF is whole, and nothing else is left."""
        pull.pull(image or self.image(), self.sif, None, self.tmpdir, key)
        made = self.sif.resolve()
        files = {f"{made.name}{end}" for end in ("", ".json", ".digest")}
        assert self.beside() == {"x.sif", *files}
        assert [*self.tmpdir.iterdir()] == []
        record = ContainerRecord.read(record_path(made))
        assert record.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()
        assert digest_path(made).read_text() == f"{record.digest}\n"
        return record

    def beside(self) -> set[str]:
        """Names of the files where the SIF is, but for locks."""
        return {x.name for x in self.sif.parent.iterdir() if x.suffix != ".lock"}

    def fails(self, reason: str, image: str = "", key: Path | None = None) -> set[str]:
        """Pulls, which must fail for this reason; the layers that it left, and it left no more."""
        before = self.beside()
        with pytest.raises(UserError, match=reason):
            pull.pull(image or self.image(), self.sif, None, self.tmpdir, key)
        assert self.beside() == before
        files = [x for x in self.tmpdir.rglob("*") if x.is_file()]
        assert [x for x in files if x.name != hashlib.sha256(x.read_bytes()).hexdigest()] == []
        return {self.registry.stored[x.name] for x in files}

    def refused(self, reason: str, image: str = "", keeps: int = 0) -> None:
        """Fails and keeps so many layers; once nothing goes wrong, a pull fetches the others."""
        kept = self.fails(reason, image)
        assert len(kept) == keeps
        before = len(self.gets())
        self.registry.faults()
        self.pull()
        fetched = [x["path"].rpartition("/")[2] for x in self.gets()[before:]]
        assert sorted(fetched) == sorted({*self.registry.layers} - kept)


@pytest.fixture
def target(
    registry: Registry,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Target]:
    """A target of the test's own, whose client trusts the registry; no fault outlasts the test."""
    for name in (*VARIABLES, "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(registry.folder / "ca.crt"))
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    target = Target(registry, name, tmp_path)
    sessions: list[registry_module.Session] = []

    class Session(registry_module.Session):
        def __init__(self) -> None:
            super().__init__()
            sessions.append(self)

    for module, name, stub in (
        (registry_module, "time", target.clock),
        (registry_module, "Session", Session),
        (image_name, "host_architecture", lambda: "amd64"),
        (pull, "apptainer_version", lambda: "1.4.5"),
        (pull, "compression", lambda work: ()),
        (pull, "apptainer", build),
        (pull, "subprocess", SimpleNamespace(run=header)),
    ):
        monkeypatch.setattr(module, name, stub)
    yield target
    registry.faults()
    gc.collect()
    for session in sessions:  # a process that pulls ends, and this one does not
        session.close()
