"""The description of a site, profiles/<site>/site.yaml."""

import getpass
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jaxway.config.gpus import known_gpus
from jaxway.config.schema import (
    WORKFLOW,
    ConfigurationError,
    check,
    expand,
    load_schema,
    nearest,
    simple_path,
    with_defaults,
)

SYSTEM_NAME_FILE = Path("/etc/FZJ/systemname")  # on JSC's machines


@dataclass(frozen=True)
class Site:
    """What workflow/schemas/site.schema.yaml describes, and the file that says it."""

    file: str
    name: str
    system_name: str | None
    sif: str
    container: bool
    container_build: bool
    image_key: str | None
    launcher: str | None
    scratch: str
    platform: str | None
    gpus_per_node: int
    gpu: str | None
    cores_per_node: int | None
    host_suffix: str
    partitions: Mapping[str, str]
    account_variables: Sequence[str]
    budget_command: str | None
    jutil: bool
    job_page: str | None
    transports: Sequence[str] | None
    references: Sequence[Mapping[str, Any]]
    required_variables: Mapping[str, str]
    shared: Sequence[str]
    small_home: bool
    inherited_variables: Sequence[str]
    environment: Mapping[str, str]

    @property
    def pull_partition(self) -> str | None:
        """Where jobs make containers, and Apptainer runs only there; None, this node does."""
        return self.partitions.get("pull") if self.launcher else None

    def page_of(self, job: str | None) -> str:
        """Address of the site's own page of a job of Slurm; empty, there is none."""
        return self.job_page.replace("{job}", job) if self.job_page and job else ""


def parse(values: Any, file: str) -> Site:
    """The site that these values describe, checked and with defaults."""
    schema = load_schema("site")
    check(values, schema, "site")
    if (gpu := values.get("gpu")) not in (None, *known_gpus()):
        known = nearest(gpu, [*known_gpus()])
        raise ConfigurationError("JW020", f"site.gpu: {gpu} is not in profiles/gpus.yaml; {known}")
    return Site(file=file, **with_defaults(values, schema["properties"]))


def read_site(path: Path) -> Site:
    """The site that a file describes; variables in it are not expanded."""
    try:
        return parse(yaml.safe_load(path.read_text()), str(path))
    except (ConfigurationError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError("JW020", f"{path}: invalid site file: {reason}") from None


def load_site(root: Path) -> Site:
    """The site whose profile is in use, with its environment variables expanded.

    The profile names itself in $JAXWAY_SITE: what it puts into `configfile` or `config` is lost
    as soon as the user gives those options too.
    """
    # Snakemake has imported the executor, and so this package, before it reads any rule.
    if (root / "workflow").resolve() != WORKFLOW:
        raise ConfigurationError(
            "JW027",
            f"this environment is that of {WORKFLOW.parent}, and these rules are of {root}: run "
            f"`make setup` in {root} and use its .venv/bin/snakemake",
        )
    if "JAXWAY_SITE" not in os.environ and (profile := profile_of_this_machine(root)):
        raise ConfigurationError(
            "JW028",
            f"this machine has a profile: add `--profile {profile}` (`--profile profiles/local` "
            "computes on this node)",
        )
    path = root / os.environ.setdefault("JAXWAY_SITE", "profiles/local") / "site.yaml"
    os.environ.setdefault("USER", getpass.getuser())
    site = read_site(path)
    for name, advice in site.required_variables.items():
        if not os.environ.get(name):
            raise ConfigurationError("JW021", f"${name} is not set: {advice}")
    if " " in sys.executable:
        raise ConfigurationError(
            "JW023", f"Snakemake cannot start Python from a path with spaces: {sys.executable}"
        )
    return replace(
        site,
        sif=expanded_path(site.sif, "sif"),
        scratch=expanded_path(site.scratch, "scratch"),
        image_key=site.image_key and expand(site.image_key, "image_key"),
        shared=[expand(folder, "shared") for folder in site.shared],
    )


def profile_of_this_machine(root: Path) -> str | None:
    """The profile in the checkout whose site has the name that this machine gives itself."""
    names = {os.environ.get("SYSTEMNAME")}
    with suppress(OSError):
        names.add(SYSTEM_NAME_FILE.read_text().strip())
    for file in sorted(root.glob("profiles/*/site.yaml")):
        if read_site(file).system_name in names - {None, ""}:
            return f"profiles/{file.parent.name}"
    return None


def expanded_path(text: str, key: str) -> str:
    """A path with its variables replaced; one that begins with a variable must be absolute."""
    path = simple_path(expand(text, key), key)
    if text.startswith("$") and not path.startswith("/"):
        raise ConfigurationError("JW022", f"{key}: must be an absolute path, not {path}")
    return path
