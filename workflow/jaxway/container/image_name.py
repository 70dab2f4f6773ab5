"""Names of images in a registry: host, repository, and tag or digest."""

import platform
import re
from dataclasses import dataclass

from jaxway_shared.errors import UserError

DIGEST_RE = "sha256:[0-9a-f]{64}"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Linux and as registries name them


@dataclass(frozen=True)
class ImageName:
    """An image in a registry; ``reference`` is a tag or a digest."""

    host: str
    repository: str
    reference: str


def parse(image: str) -> ImageName | None:
    """The parts of an image's name.

    None for any other source, and for a ``docker://`` name without host: Apptainer knows those.
    """
    scheme, _, name = image.partition("://")
    host, slash, path = name.partition("/")
    if scheme not in ("docker", "oras") or not slash or not re.search(r"[.:]|^localhost$", host):
        return None
    if "@" in host:
        raise UserError(
            "JW110",
            "image: its name must not contain a user or password; set APPTAINER_DOCKER_USERNAME "
            "and APPTAINER_DOCKER_PASSWORD",
        )
    path, at, digest = path.partition("@")
    if at and not re.fullmatch(DIGEST_RE, digest):
        raise UserError(
            "JW110",
            f"image: what follows @ must be sha256: and 64 hexadecimal digits, not {digest}",
        )
    repository, _, tag = path.partition(":")
    return ImageName(host, repository, digest if at else tag or "latest")


def host_architecture() -> str:
    """This machine's architecture, as registries name it."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())
