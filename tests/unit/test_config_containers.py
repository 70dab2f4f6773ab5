"""Where the container lies."""

import pytest
from examples import make_site
from jaxway.config.containers import Container, container_with


@pytest.mark.parametrize("builds", [True, False])
def test_other_packages_make_another_container(builds):
    site = make_site(sif="/c/jax.sif", container_build=builds)
    a, b = (container_with({"python": [name]}, site) for name in "ab")
    pulled = container_with({}, site)
    assert len({a.digest, b.digest, pulled.digest}) == 3
    assert (a.sif == "/c/jax.sif") is (not builds)
    assert bool(a.packages) is not builds
    assert pulled == Container("/c/jax.sif", "/c/jax.sif")
    assert (pulled.record, pulled.digest) == ("/c/jax.sif.json", "/c/jax.sif.digest")
    assert pulled.packages is None
