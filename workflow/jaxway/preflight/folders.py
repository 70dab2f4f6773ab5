"""Folders: whether what has to be written can be written."""

import os
from collections.abc import Iterable
from pathlib import Path

from jaxway.config.site import Site
from jaxway.preflight.finding import Findings, failure, passed


def nearest_existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents, Path(".")) if os.path.exists(each))


def check_folders(site: Site, containers: Path | None) -> Findings:
    """``containers``: the folder where one is going to be made."""
    if missing := unmounted(site.required_variables):
        yield failure(
            "JW508",
            f"${missing}: there is no folder {os.environ[missing]} on this node; try another "
            "login node",
        )
        return
    folders = [Path(site.scratch), *([containers] if containers else []), Path()]
    existing = dict.fromkeys(map(nearest_existing_parent, folders))
    refused = [folder for folder in existing if not os.access(folder, os.W_OK | os.X_OK)]
    for folder in refused:
        yield failure("JW509", f"{folder}: you cannot write there")
    if not refused:
        yield passed(f"{', '.join(map(str, folders[:-1]))} and this one can be written")


def unmounted(variables: Iterable[str]) -> str | None:
    """The first variable that names a folder which does not exist on this node."""
    for name in variables:
        if os.environ[name].startswith("/") and not os.path.isdir(os.environ[name]):
            return name
    return None
