import jax
import jax.numpy as jnp
import model
import numpy as np
import pytest

CONFIG = model.Config(layers=2, width=32, heads=2, ngram=3)
apply = jax.jit(model.apply, static_argnums=0)
bits = jax.jit(model.bits, static_argnums=0)


@pytest.fixture
def params():
    """Parameters in which no block is switched off, unlike those at the start of training."""
    params = model.init(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [p + n for p, n in zip(leaves, noise, strict=True)])


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 256, (3, 17)).astype(np.uint8)


def test_a_byte_changes_no_prediction_before_it(params, tokens):
    changed = tokens.copy()
    changed[:, 9] ^= 1
    before, after = (np.asarray(apply(CONFIG, params, t)) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(axis=-1).all()


def test_attention_knows_the_order(params, tokens):
    swapped = tokens.copy()
    swapped[:, [2, 5]] = tokens[:, [5, 2]]
    before, after = (np.asarray(apply(CONFIG, params, t)) for t in (tokens, swapped))
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-3


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    q_TxK, k_TxK = (model.rotate(jnp.tile(x, (1, 12, 1, 1)))[0, :, 0] for x in (q, k))
    np.testing.assert_allclose(jnp.linalg.norm(q_TxK, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    product_TxT = q_TxK @ k_TxK.T
    for distance in range(-11, 12):
        diagonal = np.diagonal(product_TxT, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.std(product_TxT[0]) > 0.1


def test_bits_are_those_of_the_byte_that_follows(params, tokens):
    cost = bits(CONFIG, params, tokens)
    probability = jax.nn.softmax(apply(CONFIG, params, tokens[:, :-1]))
    assert cost.shape == (3, 16)
    expected = -np.log2(probability[1, 4, tokens[1, 5]])
    np.testing.assert_allclose(cost[1, 4], expected, rtol=1e-4)


def test_an_untrained_model_costs_about_8_bits_a_byte(tokens):
    cost = bits(CONFIG, model.init(CONFIG, jax.random.key(0)), tokens)
    assert float(cost.mean()) == pytest.approx(8, abs=0.1)


def test_bfloat16_is_near_float32(params, tokens):
    half = model.Config(
        CONFIG.layers, CONFIG.width, CONFIG.heads, dtype="bfloat16", ngram=CONFIG.ngram
    )
    logits = apply(half, params, tokens)
    assert logits.dtype == jnp.float32
    # 8 bits of mantissa: 0.4 % a rounding, and some tens of roundings in a row.
    exact = apply(CONFIG, params, tokens)
    error = jnp.sqrt(jnp.mean((logits - exact) ** 2) / jnp.mean(exact**2))
    assert 1e-4 < error < 0.05


def test_heads_must_divide_the_width_evenly():
    with pytest.raises(ValueError, match=r"width 36 .* 4 heads"):
        model.Config(layers=1, width=36, heads=4)


def test_flops_agree_with_the_compiler():
    config = model.Config(layers=1, width=256, heads=4)  # the compiler counts a loop's body once
    params = model.init(config, jax.random.key(0))
    tokens = jnp.zeros((4, 129), jnp.uint8)
    gradient = jax.jit(jax.grad(lambda p, t: bits(config, p, t).mean()))
    cost = gradient.lower(params, tokens).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    assert cost
    flops = cost["flops"] / (4 * 128)
    # The compiler adds what is not a matrix product, a few per cent at this width.
    assert 1.0 < flops / model.flops_per_token(config, context=128) < 1.1
