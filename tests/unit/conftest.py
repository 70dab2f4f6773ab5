"""JURECA's site, for the tests of the configuration and of what is made from it."""

from pathlib import Path

import pytest
from jaxway.config.site import Site, load_site


@pytest.fixture
def jureca(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """JURECA's site, with what its users have in their environment."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("SBATCH_ACCOUNT", "training")
    monkeypatch.setenv("JAXWAY_SITE", "profiles/jureca")
    monkeypatch.delenv("JAXWAY_ACCOUNT", raising=False)
    return load_site(Path(__file__).parents[2])
