"""JAX compiles quickly in this process; a process that has imported it forks programs."""

import os
from collections.abc import Iterator

import jax
import preforked
import pytest
import quick

jax.config.update("jax_disable_most_optimizations", True)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", quick.FLAGS)
    jax.devices()  # XLA reads the flags once, before tests that are read start it


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[preforked.Server]:
    """Starts programs, outside any Slurm job but the given one; what one has compiled, all have."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_"))}
    quickly = {
        "XLA_FLAGS": quick.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    server = preforked.Server(outer | quickly)
    yield server
    server.close()
