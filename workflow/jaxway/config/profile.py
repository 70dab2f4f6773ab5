"""The lines of a Snakemake profile that all sites with Slurm share."""

import os
from pathlib import Path
from typing import Any

import yte

COMMON = Path(__file__).parents[3] / "profiles/common.yaml"


def slurm_profile(site: str) -> dict[str, Any]:
    """The shared lines, for a site in profiles/<site>; jobs learn its name from $JAXWAY_SITE."""
    os.environ["JAXWAY_SITE"] = f"profiles/{site}"
    profile: dict[str, Any] = yte.process_yaml(COMMON.read_text(), require_use_yte=True)
    return profile
