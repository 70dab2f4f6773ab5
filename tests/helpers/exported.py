"""A training's state with random parameters, for tests of their export and a benchmark."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxway_job import exporting, model
from jaxway_job.checkpoints import Checkpoints
from jaxway_shared import identity, training
from jaxway_shared.identity import Identity

CONTEXT = 24
# What differs from one architecture of transformers to the next.
CASES = {
    "relu2": model.Config(2, 32, 4, 128),
    "gated": model.Config(
        2, 32, 4, 128, kv_heads=2, mlp="gated", mlp_width=48, tied_embeddings=True
    ),
}


def make_state(state: Path, config: model.Config) -> model.Params:
    """Write a state with a checkpoint of step 7, and return its parameters."""
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(0).normal
    params: Any = jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(np.float32), shapes)
    params = jax.tree.map(jax.numpy.asarray, params)
    saved = Checkpoints(state, keep=1)
    saved.save(7, {"params": params})
    saved.wait()
    options = exporting.own_config(config) | {"context": CONTEXT}
    this = Identity(options, "data", {}, "image")
    (state / identity.FILE).write_text(json.dumps(this.to_json()))
    (state / training.LAST_CHECKPOINT_STEP).write_text("7\n")
    return params


def tokens() -> np.ndarray[Any, Any]:
    """Two sequences of tokens."""
    return np.random.default_rng(1).integers(0, 128, (2, CONTEXT))
