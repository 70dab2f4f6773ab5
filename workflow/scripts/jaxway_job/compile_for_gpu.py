"""Compiles the training step for GPUs that this machine need not have, by JAX's CUDA plugin.

In a process with the environment of jaxway_shared.environment.for_compiling().
"""

import argparse
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from jax._src.lib import cuda_versions
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxway_job import model
from jaxway_job.training_setup import TrainingSetup

# What XLA asks of a GPU (its GpuTargetConfigProto). Limits of blocks and registers are those of all
# compute capabilities from 8.0 to 9.0 that we know (CUDA C++ Programming Guide).
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  device_memory_size: {memory} cuda_compute_capability {{ major: {compute_capability} }} {rest}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""


def target_config(name: str, gpu: Mapping[str, Any]) -> str:
    """An entry of profiles/gpus.yaml as XLA reads it."""
    target = dict(gpu["target"])
    capability = target.pop("compute_capability")
    rest = " ".join(f"{key}: {value}" for key, value in target.items())
    return TARGET.format(name=name, memory=gpu["memory"], compute_capability=capability, rest=rest)


def make_setup(
    name: str,
    gpu: Mapping[str, Any],
    options: Mapping[str, Any],
    vocabulary: int,
    hosts: int = 1,
    gpus: int = 1,
) -> TrainingSetup:
    """A training on ``gpus`` such GPUs of each of ``hosts``. ``options``: resolved ones."""
    args = argparse.Namespace(**options, devices=hosts * gpus)
    found = topologies.get_topology_desc(
        "",
        platform="cuda",
        topology=f"1 x {hosts} x {gpus}",
        target_config=target_config(name, gpu),
    )
    devices: Any = np.array(found.devices).reshape(-1, args.fsdp, args.tensor)
    # Of the data, a step depends on the tokens' type, their number, and which ends a document.
    tokens = np.zeros(1, np.uint16 if vocabulary <= 2**16 else np.uint32)
    record = SimpleNamespace(vocabulary=vocabulary, end_of_text=vocabulary - 1)
    data: Any = SimpleNamespace(record=record, validation=tokens)
    return TrainingSetup(args, data, Mesh(devices, model.AXES))


def compile_step(setup: TrainingSetup) -> Any:
    """The step of make_setup()."""
    # JAX asks cuDNN for its version; that is large, and nothing else needs it to compile.
    with patch.object(cuda_versions, "cudnn_get_version", lambda: 91000):
        return setup.compile_step()
