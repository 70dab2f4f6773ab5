"""What a trained model is worth: its score on held-out text, and text that it writes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxway_job import cross_entropy, dataset, model
from jaxway_job.optimization import Tree
from jaxway_job.training_setup import TrainingSetup

PROMPT = b"\n"
SAMPLE_TOKENS = 128


def score(setup: TrainingSetup, params: Tree, progress: Callable[[], None]) -> float:
    """Nats that the held-out text costs. Calls ``progress`` after each batch of windows."""
    batch_size, total = setup.args.global_batch, 0.0
    nats = jax.jit(partial(cross_entropy.loss, setup.config))
    windows, weights = dataset.scoring_windows(setup.data.validation, setup.args.context)
    for i in range(0, len(windows), batch_size):
        rows = slice(i, i + batch_size)
        padding = [(0, batch_size - len(windows[rows])), (0, 0)]
        parts = [np.pad(part[rows], padding) for part in (windows, weights)]
        # device_put() would compare them among processes, beside a collective that still runs.
        arrays = (
            jax.make_array_from_callback(x.shape, setup.by_batch, x.__getitem__) for x in parts
        )
        total += float(nats(params, *arrays))
        progress()
    return total


def sample_text(setup: TrainingSetup, params: Tree) -> str:
    """Text that a model of bytes writes."""
    sample = partial(sample_bytes, setup.config, length=SAMPLE_TOKENS, seed=setup.args.seed)
    return bytes(np.asarray(jax.jit(sample)(params))).decode(errors="replace")


def sample_bytes(config: model.Config, params: Tree, length: int, seed: int) -> jax.Array:
    """``length`` bytes that start with PROMPT, sampled at temperature 0.8."""
    start = (
        jnp.zeros((1, length), jnp.uint8).at[0, : len(PROMPT)].set(jnp.array([*PROMPT], "uint8"))
    )

    def extend(position: Any, text_1xT: jax.Array) -> jax.Array:
        logits_V = model.logits(config, params, text_1xT)[0, position - 1]
        key = jax.random.fold_in(jax.random.key(seed), position)
        byte = jax.random.categorical(key, logits_V / 0.8)
        return text_1xT.at[0, position].set(byte.astype(jnp.uint8))

    text: jax.Array = jax.lax.fori_loop(len(PROMPT), length, extend, start)[0]
    return text
