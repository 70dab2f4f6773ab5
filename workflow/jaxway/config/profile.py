"""What a Snakemake profile does: say which site it is, and take the lines that sites share."""

import os
from pathlib import Path
from typing import Any

import yte

SOURCE_CACHE = "snakemake/snakemake/source-cache"
COMMON = Path(__file__).parents[3] / "profiles/common.yaml"


def use_site(name: str) -> None:
    """The site is that in profiles/<name>; jobs learn it from $JAXWAY_SITE.

    Snakemake ends with a traceback where it cannot make its cache, as in a full $HOME.
    """
    os.environ["JAXWAY_SITE"] = f"profiles/{name}"
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        Path(caches, SOURCE_CACHE).mkdir(parents=True, exist_ok=True)
    except OSError:
        os.environ["XDG_CACHE_HOME"] = os.path.abspath(".snakemake/cache")


def slurm_profile(site: str) -> dict[str, Any]:
    """The shared lines, for a site in profiles/<site>."""
    use_site(site)
    profile: dict[str, Any] = yte.process_yaml(COMMON.read_text(), require_use_yte=True)
    return profile
