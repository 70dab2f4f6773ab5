"""The registry that misbehaves, as tests see it: its faults, and what it has logged."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tiny_image import Content

Json = dict[str, Any]


def make_certificates(folder: Path, *names: str) -> None:
    """An authority (ca.crt) and its certificate for these names (crt and key)."""
    new = "openssl req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout"
    # Python 3.13 trusts no authority that does not say what its key is for.
    authority = "-subj /CN=test-pull-CA -addext keyUsage=critical,keyCertSign"
    alternatives = f"-addext subjectAltName={','.join(names)}"
    signed = "-addext basicConstraints=critical,CA:FALSE -CA ca.crt -CAkey ca.key"
    for line in (
        f"{new} ca.key -out ca.crt {authority}",
        f"{new} key -out crt -subj /CN=registry {alternatives} {signed}",
    ):
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)


class Registry:
    """A running registry; its log and what it has."""

    content: Content  # where it runs in this process

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.host = folder, host
        ready = json.loads((folder / "ready.json").read_text())
        self.port, self.proxy, self.tags = ready["port"], ready["proxy"], ready["tags"]
        self.layers: list[str] = ready["layers"]
        self.stored = dict(zip(ready["contents"], self.layers, strict=True))  # by its file's name

    def faults(self, *faults: Json) -> None:
        """What goes wrong from now on, instead of what did."""
        part = self.folder / "faults.part"
        part.write_text(json.dumps(faults))
        part.rename(self.folder / "faults.json")

    def log(self) -> list[Json]:
        lines = (self.folder / "log.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


class Repository:
    """A repository of a test's own, so that its faults and its log are the test's alone."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry, self.name = registry, name

    def image(self, tag: str = "latest", scheme: str = "docker") -> str:
        separator = "@" if tag.startswith("sha256:") else ":"
        host = f"{self.registry.host}:{self.registry.port}"
        return f"{scheme}://{host}/{self.name}/tiny{separator}{tag}"

    def fault(self, path: str = "", **fault: Any) -> Json:
        """A fault of this repository; `path` may be "third" for the large layer."""
        layer = f"/blobs/{self.registry.layers[-1]}"
        return fault | {"path": f"/{self.name}/tiny{layer if path == 'third' else path}"}

    def log(self) -> list[Json]:
        """The answers to requests for this repository."""
        lines = self.registry.log()
        return [x for x in lines if f"/{self.name}/" in x.get("path", "") and "status" in x]

    def gets(self) -> list[Json]:
        """The answers that sent a layer or the rest of one."""
        wanted = tuple(self.registry.layers)
        return [x for x in self.log() if x["path"].endswith(wanted) and x["status"] in (200, 206)]
