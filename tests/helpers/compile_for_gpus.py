"""Compiles the training step for GPUs that are not there, and writes the programs that XLA makes.

Run by test_gpu_compilation.py, with JAX's CUDA plugin in PYTHONPATH. The first argument is a JSON
object: for each name options of train.py, a `gpu` of GPUS, how many `hosts`, how many `gpus` each
has, and a `mutation`. The second is a folder for the programs and `donated.json`.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import train
from example_records import data_record
from jax._src.lib import cuda_versions
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxway_job import model, training_setup
from jaxway_job.dataset import Data
from jaxway_job.training_setup import TrainingSetup
from jaxway_shared import presets

# What XLA wants to know of a GPU (its GpuTargetConfigProto): from NVIDIA's white papers and data
# sheets, and XLA's own xla/backends/gpu/target_config/specs.
SPEC = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock} l2_cache_size: {l2}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
AMPERE: dict[str, Any] = {"major": 8, "fpus": 64, "shared": 167936, "optin": 166912, "l2": 41943040}
HOPPER: dict[str, Any] = {
    "major": 9,
    "fpus": 128,
    "shared": 233472,
    "optin": 232448,
    "l2": 52428800,
}
AMPERE |= {"cores": 108, "clock": 1.41}
HOPPER |= {"cores": 132, "clock": 1.98}
GPUS: dict[str, dict[str, Any]] = {
    "NVIDIA A100-SXM4-40GB": {**AMPERE, "bandwidth": 1555200000000, "memory": 42331013120},
    "NVIDIA H100 80GB HBM3": {**HOPPER, "bandwidth": 3352320000000, "memory": 84942979072},
    "NVIDIA GH200 120GB": {**HOPPER, "bandwidth": 4022784000000, "memory": 101949112320},
}


def mesh_of(gpu: str, hosts: int, gpus: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh of GPUs that are only compiled for."""
    target = SPEC.format(name=gpu, **GPUS[gpu])
    found = topologies.get_topology_desc(
        "", platform="cuda", topology=f"1 x {hosts} x {gpus}", target_config=target
    )
    return Mesh(np.array(found.devices).reshape(-1, fsdp, tensor), model.AXES)


def compile_step(gpu: str, hosts: int = 1, gpus: int = 1, **options: Any) -> tuple[Any, int]:
    """A training's step with these options, compiled, and how many arrays its state has."""
    defaults = {name: option["default"] for name, option in train.OPTIONS.items()}
    args = argparse.Namespace(**presets.resolve({**defaults, **options}))
    args.devices = hosts * gpus
    # Of the data, a program depends on the tokens' type and how many there are: here GPT-2's.
    data = Data(data_record(dtype="uint16", vocabulary=50257), [], np.zeros(1, np.uint16))
    setup = TrainingSetup(args, data, mesh_of(gpu, hosts, gpus, args.fsdp, args.tensor))
    # JAX asks cuDNN for its version; that is large, and nothing else needs it to compile.
    with patch.object(cuda_versions, "cudnn_get_version", lambda: 91000):
        return setup.compile_step(), len(jax.tree.leaves(setup.shapes))


# -------------------------------------------------------------------------------- what goes wrong

sdpa, jit = model.sdpa, jax.jit


def float32_attention(config: Any, *qkv: Any) -> Any:
    return sdpa(config, *(x.astype(jnp.float32) for x in qkv)).astype(jnp.bfloat16)


def jit_without_donation(function: Any, **options: Any) -> Any:
    options.pop("donate_argnums", None)
    return jit(function, **options)


MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "attention in float32": (model, "sdpa", float32_attention),
    "nothing donated": (jax, "jit", jit_without_donation),
    "blocking collectives": (training_setup, "compiler_options", lambda mesh: {}),
}


def main() -> None:
    folder = Path(sys.argv[2])
    donated = {}
    for name, case in json.loads(sys.argv[1]).items():
        mutation = MUTATIONS.get(case.pop("mutation", ""))
        with patch.object(*mutation) if mutation else contextlib.nullcontext():
            program, donated[name] = compile_step(**case)
        (folder / f"{name}.hlo").write_text(program.as_text())
    (folder / "donated.json").write_text(json.dumps(donated))


if __name__ == "__main__":
    main()
