"""The optimizer and its schedules, beside formulas of numpy."""

from argparse import Namespace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
import train
from jaxway_job import model, optimization
from jaxway_shared import presets

PEAK, LOWEST, WARMUP, END, DECAY = 0.01, 0.001, 4, 40, 10
SHAPES = {"embed_VxD": (6, 4), "ngrams_RxD": (3, 4), "layers": (2, 4, 3), "head_DxV": (4, 6)}
SQUARE = np.eye(64, dtype=np.float32)


def options(**values: Any) -> Namespace:
    """The options of a short training, but for these values."""
    defaults = {name: option["default"] for name, option in train.OPTIONS.items()}
    short = {"learning_rate": PEAK, "warmup_steps": WARMUP, "steps": END}
    return Namespace(**presets.resolve({**defaults, **short, **values}))


def rates(**values: Any) -> np.ndarray:
    """Learning rate of each step, and of some after the schedule's end."""
    schedule = optimization.make_schedule(options(min_learning_rate=LOWEST, **values))
    return np.array(jax.vmap(schedule)(np.arange(END + 10)))


@pytest.mark.parametrize(
    ("schedule", "share"),
    [  # of the way from the lowest rate to the peak, at each part of what follows warm-up
        ("cosine", lambda part: (1 + np.cos(np.pi * part)) / 2),
        ("linear", lambda part: 1 - part),
        ("constant", np.ones_like),
        ("wsd", lambda part: np.minimum(1, (1 - part) * (END - WARMUP) / DECAY)),
    ],
)
def test_schedule_is_its_formula(schedule, share):
    step = np.arange(END + 10)
    part = np.clip((step - WARMUP) / (END - WARMUP), 0, 1)
    after = LOWEST + (PEAK - LOWEST) * share(part)
    expected = np.where(step < WARMUP, PEAK * (step + 1) / (WARMUP + 1), after)
    np.testing.assert_allclose(rates(schedule=schedule, decay_steps=DECAY), expected, rtol=1e-5)


def test_schedule_is_the_same_for_other_numbers_of_steps():
    for schedule in ("cosine", "wsd"):
        short, long = (rates(schedule=schedule, steps=n, schedule_steps=END) for n in (30, 90))
        np.testing.assert_array_equal(short, long)
        assert (short != rates(schedule=schedule, steps=30)).any()
    short, long = (rates(schedule="constant", steps=n) for n in (30, 90))
    np.testing.assert_array_equal(short, long)


def test_default_schedule_is_optax_own():
    own = optax.warmup_cosine_decay_schedule(PEAK / (WARMUP + 1), PEAK, WARMUP, END)
    ours = optimization.make_schedule(options())
    steps = np.arange(END)
    np.testing.assert_array_equal(jax.vmap(ours)(steps), jax.vmap(own)(steps))


@pytest.mark.parametrize(
    ("clip_norm", "decay_embeddings"), [(0.0, True), (0.5, False), (100.0, True)]
)
def test_optimizer_is_its_formula(clip_norm, decay_embeddings):
    draw = np.random.default_rng(0)
    params = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    args = options(
        beta1=0.8, beta2=0.7, epsilon=0.1, weight_decay=0.5, clip_norm=clip_norm,
        decay_embeddings=decay_embeddings, schedule="constant", warmup_steps=0,
    )  # fmt: skip
    optimizer = optimization.make_optimizer(args, optimization.make_schedule(args))
    ours = jax.tree.map(lambda x: x.astype(np.float32), params)
    moments = optimizer.init(ours)
    update = jax.jit(optimizer.update)
    mean, square = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for step in (1, 2, 3):
        gradient = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
        updates, moments = update(gradient, moments, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, g in gradient.items():
            if clip_norm and norm > clip_norm:
                g = g * clip_norm / norm
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.7 * square[name] + 0.3 * g**2
            direction = mean[name] / (1 - 0.8**step)
            direction /= np.sqrt(square[name] / (1 - 0.7**step)) + 0.1
            if decay_embeddings or name in ("layers", "head_DxV"):
                direction += 0.5 * params[name]
            params[name] = params[name] - PEAK * direction
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def compiled(**xla: Any) -> Any:
    """A function compiled with these options of XLA."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    lowered = jax.jit(jnp.dot).lower(SQUARE, SQUARE)
    return optimization.compile_step(lowered, mesh, xla)


@quick.needs_onednn
def test_step_with_products_of_onednn():
    """It computes what XLA's own products do. Together with others, some products were wrong."""
    others: Any = {"kv_heads": 1, "mlp": "gated", "tied_embeddings": True, "document_end": 3}
    config = model.Config(layers=2, width=64, heads=2, ngram=2, **others)
    optimizer = optax.sgd(1.0)
    params = model.init(config, jax.random.key(0))
    params = jax.tree.map(
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), params
    )
    tokens = np.random.default_rng(0).integers(0, 256, (4, 65), np.uint8)
    step = jax.jit(partial(optimization.train_step, config, optimizer, 2))
    values = {"params": params, "optimizer": optimizer.init(params)}, tokens, np.zeros(1, np.int32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    own = optimization.compile_step(step.lower(*values), mesh, {"xla_cpu_use_onednn": False})
    ours = optimization.compile_step(step.lower(*values), mesh, None)
    assert "onednn_fusion" in ours.as_text() and "onednn_fusion" not in own.as_text()
    (after, _), (expected, _) = ours(*values), own(*values)
    after, expected = (jax.tree.leaves(state["params"]) for state in (after, expected))
    for x, y, before in zip(after, expected, jax.tree.leaves(params), strict=True):
        assert jnp.linalg.norm(x - y) < 1e-3 * jnp.linalg.norm(y - before)


def test_options_of_xla():
    product = compiled(xla_gpu_all_reduce_combine_threshold_bytes=1024, xla_foo=None)
    np.testing.assert_array_equal(product(SQUARE, SQUARE), SQUARE @ SQUARE)
    with pytest.raises(SystemExit) as stop:
        compiled(xla_foo=True)
    assert "xla: INVALID_ARGUMENT: No such compile option: 'xla_foo' (JAX " in str(stop.value)
    with pytest.raises(SystemExit, match="'1' is not a valid bool value"):
        compiled(xla_gpu_enable_latency_hiding_scheduler=1)
