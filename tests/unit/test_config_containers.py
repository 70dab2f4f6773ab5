"""Where the container lies."""

import pytest
from examples import make_site
from jaxway.config.containers import container_with


@pytest.mark.parametrize("builds", [True, False])
def test_other_packages_make_another_container(builds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = make_site(sif="/c/jax.sif", container_build=builds)
    a, b = (container_with({"python": [name]}, site) for name in "ab")
    pulled = container_with({}, site)
    sif = f"{tmp_path}/results/container/jax.sif"
    assert len({a.digest, b.digest, pulled.digest}) == 3
    assert (a.sif == sif) is (not builds)
    assert bool(a.packages) is not builds
    assert (pulled.sif, pulled.output) == (sif, sif)
    assert (pulled.record, pulled.digest) == (f"{sif}.json", f"{sif}.digest")
    assert pulled.packages is None
