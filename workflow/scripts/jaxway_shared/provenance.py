"""Provenance: where a result comes from. Part of every result file, so it has no version alone."""

from dataclasses import dataclass, field
from typing import Any

from jaxway_shared.container_record import ContainerRecord


@dataclass(frozen=True)
class Provenance:
    """Image, code, nodes, devices, versions and arguments of the program that made a result."""

    time: str  # when the program began; UTC, ISO 8601
    container: ContainerRecord | None  # None outside a container
    commit: str | None  # of this repository, with "-dirty" if tracked files had changed
    site: str | None  # folder of the site's profile
    nodes: str  # node list of the Slurm step, or the machine's name
    job: str | None  # Slurm's id; None outside Slurm
    processes: int
    devices: int  # of all processes together
    platform: str | None  # JAX's names of its devices; None: JAX was not asked
    device_kind: str | None
    python: str
    jax: str
    jaxlib: str
    numpy: str
    backend: str | None  # version of JAX's runtime, with CUDA's
    driver: str | None  # NVIDIA's kernel driver
    arguments: dict[str, Any]  # of the program, defaults included
    # What the program found of variables that change what it does: jaxway_shared/environment.py.
    environment: dict[str, str] = field(default_factory=dict)
