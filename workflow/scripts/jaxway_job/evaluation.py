"""What a model is worth: its score on held-out text, and text that it writes."""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxway_job import cross_entropy, dataset, model
from jaxway_job.optimization import Tree
from jaxway_job.training_setup import TrainingSetup

SAMPLE_TOKENS = 128


class Evaluation:
    """Evaluates models of a training, by functions that are compiled once: by ``compile``, or when
    they are called first.

    ``begin_batch`` is called before each batch of windows.
    """

    def __init__(self, setup: TrainingSetup, begin_batch: Callable[[], None]) -> None:
        self.setup, self.record, self.begin_batch = setup, setup.data.record, begin_batch
        self.nats: Any = jax.jit(partial(cross_entropy.loss, setup.config))
        prompt, _ = dataset.scoring_windows(setup.data.validation[:1], setup.args.context)
        first = int(prompt[0, 0])  # which comes before a text
        self.write: Any = jax.jit(
            partial(sample, setup.config, setup.args.seed, first, self.record.vocabulary),
            out_shardings=setup.replicated,
        )

    def compile(self) -> None:
        """Compile the functions, for which no array is needed."""
        params, size = self.setup.sharded_shapes()["params"], self.setup.args.global_batch
        windows, weights = (
            jax.ShapeDtypeStruct((size, *part.shape[1:]), part.dtype, sharding=self.setup.by_batch)
            for part in self.sample_windows
        )
        self.nats = self.nats.lower(params, windows, weights).compile()
        self.write = self.write.lower(params).compile()

    def text_nats(self, params: Tree) -> float:
        """Nats that the held-out text costs."""
        return self.score(params, *self.windows())

    def loss(self, params: Tree) -> float:
        """Nats per token of a sample of the held-out text."""
        windows, weights = self.sample_windows
        return self.score(params, windows, weights) / float(weights.sum())

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows over the held-out text, and weights of their tokens."""
        return dataset.scoring_windows(self.setup.data.validation, self.setup.args.context)

    @functools.cached_property
    def sample_windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of the sample: spread evenly over the text."""
        windows, weights = self.windows()
        wanted = math.ceil(self.setup.args.validate_tokens / (self.setup.args.context // 2))
        count = min(len(windows), wanted)
        picks = np.linspace(0, len(windows) - 1, count).astype(int)
        return windows[picks], weights[picks]

    def score(self, params: Tree, windows: np.ndarray, weights: np.ndarray) -> float:
        """Nats that windows cost."""
        batch_size, total = self.setup.args.global_batch, 0.0
        for i in range(0, len(windows), batch_size):
            self.begin_batch()
            rows = slice(i, i + batch_size)
            padding = [(0, batch_size - len(windows[rows])), (0, 0)]
            parts = [np.pad(part[rows], padding) for part in (windows, weights)]
            # device_put() would compare them among processes, beside a collective that still runs.
            arrays = (
                jax.make_array_from_callback(x.shape, self.setup.by_batch, x.__getitem__)
                for x in parts
            )
            total += float(self.nats(params, *arrays))
        return total

    def sample_tokens(self, params: Tree) -> list[int]:
        """Tokens that a model writes."""
        self.begin_batch()
        tokens: list[int] = np.asarray(self.write(params)).tolist()
        return tokens

    def text(self, tokens: list[int]) -> str | None:
        """Tokens as text; None with a tokenizer, which is not here."""
        return bytes(tokens).decode(errors="replace") if self.record.tokenizer == "bytes" else None


def sample(config: model.Config, seed: int, first: int, vocabulary: int, params: Tree) -> jax.Array:
    """SAMPLE_TOKENS tokens below ``vocabulary``: ``first``, and others at temperature 0.8."""
    start = jnp.zeros((1, SAMPLE_TOKENS), jnp.int32).at[0, 0].set(first)

    def extend(position: Any, text_1xT: jax.Array) -> jax.Array:
        logits_V = model.logits(config, params, text_1xT)[0, position - 1, :vocabulary]
        key = jax.random.fold_in(jax.random.key(seed), position)
        token = jax.random.categorical(key, logits_V / 0.8)
        return text_1xT.at[0, position].set(token.astype(jnp.int32))

    text: jax.Array = jax.lax.fori_loop(1, SAMPLE_TOKENS, extend, start)[0]
    return text
