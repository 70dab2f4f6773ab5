"""Compiles the training step for GPUs that are not there, and writes the programs that XLA makes.

Run by test_gpu_compilation.py, with JAX's CUDA plugin in PYTHONPATH. The first argument is a JSON
object: for each name options of train.py, a `gpu` of profiles/gpus.yaml, how many `hosts`, how many
`gpus` each has, the `vocabulary`, and whether it is `mutated`. The second is a folder for the
programs and `donated.json`.
"""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import train
from jaxway.config.gpus import known_gpus
from jaxway_job import compile_for_gpu, model, optimization, training_setup
from jaxway_shared import presets

GPT2 = 50257  # tokens


def compile_step(
    gpu: str, hosts: int = 1, gpus: int = 1, vocabulary: int = GPT2, **options: Any
) -> tuple[Any, int]:
    """A training's step with these options, compiled, and how many arrays its state has."""
    defaults = {name: option["default"] for name, option in train.OPTIONS.items()}
    resolved, kind = presets.resolve({**defaults, **options}), asdict(known_gpus()[gpu])
    setup = compile_for_gpu.make_setup(gpu, kind, resolved, vocabulary, hosts, gpus)
    return compile_for_gpu.compile_step(setup), len(jax.tree.leaves(setup.shapes))


sdpa, jit, train_step = model.sdpa, jax.jit, optimization.train_step


def float32_attention(config: Any, q: Any, k: Any, v: Any, document: Any) -> Any:
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return sdpa(config, q, k, v, document).astype(jnp.bfloat16)


def jit_without_donation(function: Any, **options: Any) -> Any:
    options.pop("donate_argnums", None)
    return jit(function, **options)


def loss_by_the_host(*arguments: Any) -> Any:
    state, result = train_step(*arguments)
    there = jax.lax.optimization_barrier(jax.device_put(result["loss"], jax.memory.Space.Host))
    return state, {**result, "loss": jax.device_put(there, jax.memory.Space.Device)}


MUTATIONS: list[tuple[Any, str, Any]] = [
    (model, "widen", lambda x: x),
    (model, "sdpa", float32_attention),
    (jax, "jit", jit_without_donation),
    (training_setup, "train_step", loss_by_the_host),
    (optimization, "compiler_options", lambda mesh: {}),
]


def main() -> None:
    folder = Path(sys.argv[2])
    donated = {}
    for name, case in json.loads(sys.argv[1]).items():
        with contextlib.ExitStack() as stack:
            for mutation in MUTATIONS if case.pop("mutated", False) else ():
                stack.enter_context(patch.object(*mutation))
            program, donated[name] = compile_step(**case)
        (folder / f"{name}.hlo").write_text(program.as_text())
    (folder / "donated.json").write_text(json.dumps(donated))


if __name__ == "__main__":
    main()
