"""Where a run finds the container that its jobs run in: links, which are its own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxway.config.jobs import short_hash
from jaxway.config.schema import ConfigurationError
from jaxway.config.site import Site

LOCK_FOLDER = Path("results/container")  # in the folder of a run
MAX_LINKS = 40  # in a row, as Linux has it


@dataclass(frozen=True)
class Container:
    """``output`` is what is made last: the SIF, or the folder of packages on top of it.

    Both are links of the run, to what users share (jaxway/container/store.py).
    """

    sif: str
    output: str

    @property
    def record(self) -> str:
        return str(record_path(Path(self.output)))

    @property
    def digest(self) -> str:
        return str(digest_path(Path(self.output)))

    @property
    def packages(self) -> str | None:
        """Folder with the configured Python packages; None, where the SIF holds them all."""
        return self.output if self.output != self.sif else None


def record_path(output: Path) -> Path:
    """The file with what is known of a container (jaxway_shared/container_record.py)."""
    return output.with_name(f"{output.name}.json")


def digest_path(output: Path) -> Path:
    """The file with the record's ``identity``, on which reruns depend."""
    return output.with_name(f"{output.name}.digest")


def target(path: Path) -> Path:
    """Where a link leads, or a link to a link; the path itself, if it is none."""
    for _ in range(MAX_LINKS):
        if os.path.islink(path):
            path = path.parent / os.readlink(path)
    return path


def container_with(packages: Mapping[str, Sequence[str]], site: Site) -> Container:
    """The container with these packages on top of the image; as it is pulled, if there are none."""
    # As absolute paths, which a module's prefix leaves alone.
    sif = str((LOCK_FOLDER / Path(site.sif).name).absolute())
    if not packages:
        return Container(sif, sif)
    output = f"{sif.removesuffix('.sif')}-{short_hash(packages)}"
    if site.container_build:
        return Container(f"{output}.sif", f"{output}.sif")
    if "debian" in packages:
        raise ConfigurationError(
            "JW017",
            f"packages.debian: at {site.name} users cannot build containers, so only Python "
            "packages can be added",
        )
    return Container(sif, output)
