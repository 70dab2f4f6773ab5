"""How a job is started: its environment and its command line."""

import os
import subprocess
import sys
from pathlib import Path

from jaxway.config.containers import Container
from jaxway.config.jobs import Config
from jaxway.config.site import Site


def prepare_environment(root: Path, site: Site, container: Container | None) -> None:
    """Set what jobs inherit, and drop what must not reach the container, if there is one."""
    if container:
        for variable in site.unset_variables:
            os.environ.pop(variable, None)
        if folder := container.packages:
            binds = [b for b in os.environ.get("APPTAINER_BIND", "").split(",") if b]
            if (bind := f"{folder}:{folder}:ro") not in binds:
                os.environ["APPTAINER_BIND"] = ",".join([*binds, bind])
    else:  # python3 is to be the one that runs this: it has JAX beside it
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if "SLURM_JOB_END_TIME" in os.environ:  # in a job, before the Slurm plugin drops it
        os.environ["JAXWAY_DEADLINE"] = os.environ["SLURM_JOB_END_TIME"]
    if commit := commit_of(root):
        os.environ["JAXWAY_COMMIT"] = commit
    else:  # a compute node may have no git
        os.environ.setdefault("JAXWAY_COMMIT", "unknown")


def commit_of(root: Path) -> str | None:
    """Commit of a checkout, marked where its code has changed; None, where git knows of none."""
    git = ["git", "-C", str(root)]
    commit = [*git, "describe", "--always", "--abbrev=40"]
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!config"]  # results tell that one
    try:
        described = subprocess.run(commit, capture_output=True, text=True, check=True)
        dirty = "-dirty" if subprocess.run(changed, capture_output=True).returncode else ""
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() + dirty


def job_environment(config: Config, container: Container | None) -> dict[str, str]:
    """Environment variables of every computing job."""
    environment = dict(config.environment)
    if container and container.packages:
        paths = [container.packages, environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = ":".join(filter(None, paths))
    return environment
