"""The record of a container: what `jaxway pull` knows of a SIF, beside it in `<sif>.json`.

A container with packages on top has a record of its own, which holds its base's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared import versioned

SCHEMA_VERSION = 1
KIND = "container's record"


@dataclass(frozen=True)
class LayerRecord:
    """A layer as the registry has it: compressed."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class Packages:
    """Packages that were asked for, as pip and apt-get take them."""

    python: list[str]
    debian: list[str]


@dataclass(frozen=True)
class ContainerRecord:
    """Where a container comes from, and what its file is known by.

    ``digest`` is the image's in the registry, or of a local file; None where Apptainer alone knows
    the source. With packages it is of the base and of what was installed on top. ``sha256``,
    ``bytes`` and ``mtime_ns`` are of the SIF that jobs start.
    """

    image: str
    digest: str | None
    sha256: str
    bytes: int
    mtime_ns: int
    apptainer: str
    date: str
    labels: dict[str, str]
    layers: tuple[LayerRecord, ...]
    packages: Packages | None = None
    installed: tuple[str, ...] | None = None
    base: "ContainerRecord | None" = None

    @classmethod
    def read(cls, path: Path) -> "ContainerRecord":
        """The record in a file. UserError where it is none that can be read; OSError, no file."""
        remedy = f"remove the container (`rm -r {path.with_suffix('')}`), and the next run makes it"
        return versioned.read_as(cls, path, KIND, SCHEMA_VERSION, remedy)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return versioned.encode(self, SCHEMA_VERSION)

    @property
    def identity(self) -> str:
        """What results depend on: the image's digest, or the SIF's hash if it has none."""
        return self.digest or self.sha256

    def same_image(self, image: str) -> bool:
        """Whether it is of this image, by its name or the digest that pins it."""
        pulled = self.base or self
        return image == pulled.image or image.endswith(f"@{pulled.digest}")
