"""Where the files of the container lie that jobs run in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxway.config.jobs import short_hash
from jaxway.config.schema import ConfigurationError
from jaxway.config.site import Site


@dataclass(frozen=True)
class Container:
    """``output`` is what is made last: the SIF, or the folder of packages on top of it."""

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


def container_with(packages: Mapping[str, Sequence[str]], site: Site) -> Container:
    """The container with these packages on top of the image; as it is pulled, if there are none."""
    if not packages:
        return Container(site.sif, site.sif)
    # Named by its content, so that users of one folder with other packages keep out of each other.
    output = f"{site.sif.removesuffix('.sif')}-{short_hash(packages)}"
    if site.container_build:
        return Container(f"{output}.sif", f"{output}.sif")
    if "debian" in packages:
        raise ConfigurationError(
            "JW017",
            f"packages.debian: at {site.name} users cannot build containers, so only Python "
            "packages can be added",
        )
    return Container(site.sif, output)
