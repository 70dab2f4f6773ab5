"""What GPUs are: profiles/gpus.yaml, which sites share."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from jaxway.config.schema import WORKFLOW

FILE = WORKFLOW.parent / "profiles/gpus.yaml"


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU; that file says more."""

    memory: int  # bytes
    flops: float  # FLOP/s of matrix products in bfloat16, the best that is seen
    bytes_per_second: float  # of memory, likewise
    target: Mapping[str, float]  # what XLA wants to know to compile for it


@functools.cache
def known_gpus() -> dict[str, Gpu]:
    """All of them, by the name that JAX has for a device of this kind."""
    return {name: Gpu(**values) for name, values in yaml.safe_load(FILE.read_text()).items()}
