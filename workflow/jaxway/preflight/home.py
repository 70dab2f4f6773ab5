"""$HOME with a small quota: whether the run and its caches stay out of it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from jaxway_shared.environment import SHELL_RE

from jaxway.preflight.finding import Findings, failure, passed, warning

CACHES = ("HF_HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")


def check_home_quota(environment: Mapping[str, str]) -> Findings:
    """``environment``: that of jobs. A container's home is the folder of the run."""
    inherited = {k: v for k, v in os.environ.items() if not re.search(SHELL_RE, k)}
    variables = {**inherited, **environment}
    advice = "is in $HOME, whose quota is small and fills: move it to $PROJECT"
    inside = [f"${name}" for name in CACHES if is_in_home(variables.get(name, ""))]
    if is_in_home("."):
        yield failure("JW515", f"this folder {advice}")
    for variable in inside:  # it may be of something that no job does
        yield warning(f"{variable} {advice}")
    if not inside and not is_in_home("."):
        yield passed("caches stay out of $HOME")


def is_in_home(path: str) -> bool:
    return bool(path) and Path(path).resolve().is_relative_to(Path.home().resolve())
