import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jaxway_job import cross_entropy, flops, model

CONFIG = model.Config(layers=2, width=32, heads=2, ngram=3)
apply = jax.jit(model.logits, static_argnums=0)
loss = jax.jit(cross_entropy.loss, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    """Parameters in which no block is switched off, unlike those at the start of training."""
    params = model.init(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.2 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [p + n for p, n in zip(leaves, noise, strict=True)])


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 256, (3, 17)).astype(np.uint8)


def test_byte_changes_no_prediction_before_it(params, tokens):
    changed = tokens.copy()
    changed[:, 9] ^= 1
    before, after = (np.asarray(apply(CONFIG, params, t)) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(axis=-1).all()


def test_attention_depends_on_order(params, tokens):
    swapped = tokens.copy()
    swapped[:, [2, 5]] = tokens[:, [5, 2]]
    before, after = (np.asarray(apply(CONFIG, params, t)) for t in (tokens, swapped))
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-3


def test_document_is_predicted_as_if_it_were_alone(params, tokens):
    config = dataclasses.replace(CONFIG, document_end=255)
    packed = np.minimum(tokens, 254)
    packed[:, 6] = 255
    second_first = np.roll(packed, -7, axis=1)
    found, alone, mixed = (
        np.asarray(apply(*arguments))
        for arguments in (
            (config, params, packed), (config, params, second_first), (CONFIG, params, packed)
        )
    )  # fmt: skip
    np.testing.assert_allclose(found[:, 7:], alone[:, :10], atol=1e-4)
    assert (np.abs(found - mixed)[:, 7:].max(axis=-1) > 1e-2).all()
    np.testing.assert_allclose(found[:, :7], mixed[:, :7], atol=1e-5)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    q_TxK, k_TxK = (model.rotate(CONFIG, jnp.tile(x, (1, 12, 1, 1)))[0, :, 0] for x in (q, k))
    np.testing.assert_allclose(jnp.linalg.norm(q_TxK, axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    product_TxT = q_TxK @ k_TxK.T
    for distance in range(-11, 12):
        diagonal = np.diagonal(product_TxT, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.std(product_TxT[0]) > 0.1


def plain_loss(config, params, tokens, weights):
    """Weighted sum of the nats of each next token, by the whole softmax at once."""
    nats = -jax.nn.log_softmax(model.logits(config, params, tokens[:, :-1]))
    return jnp.sum(weights * jnp.take_along_axis(nats, tokens[:, 1:, None].astype(int), 2)[..., 0])


def losses(loss, config, params, tokens, weights, equal_weights):
    """A weighted loss with its gradient, and the mean."""
    of = functools.partial(loss, config)
    return *jax.value_and_grad(of)(params, tokens, weights), of(params, tokens, equal_weights)


@pytest.fixture(scope="module")
def weights():
    return jax.random.uniform(jax.random.key(0), (3, 16))


@pytest.fixture(scope="module")
def whole(params, tokens, weights):
    """losses() by the whole softmax."""
    return jax.jit(functools.partial(losses, plain_loss, CONFIG))(params, tokens, weights, 1 / 48)


@pytest.mark.parametrize("held", [2**28, 3 * 4 * 256, 1])  # in one, in 4, in 16 chunks
def test_loss_and_gradient_are_those_of_the_whole_softmax(
    params, tokens, weights, whole, held, monkeypatch
):
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", held)
    jax.clear_caches()
    of_chunks = jax.jit(functools.partial(losses, cross_entropy.loss, CONFIG))
    chunked = of_chunks(params, tokens, weights, None)
    # float32 rounds at 6e-8; the largest sums here have some hundred terms of either sign.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), chunked, whole
    )
    assert float(chunked[0]) > 1
    assert float(chunked[2]) == pytest.approx(float(whole[2]), rel=1e-5)


def test_what_gpus_do_alone_is_right(params, tokens, weights, whole, monkeypatch):
    """Layers without a loop, on several one after the other; three products for q, k and v, a
    softmax's sums in one pass."""
    monkeypatch.setattr(model.Config, "on_gpu", True)
    monkeypatch.setattr(model.Config, "on_several", True)
    jax.clear_caches()
    config = dataclasses.replace(CONFIG, unroll=True)
    with_gradient = jax.value_and_grad(functools.partial(cross_entropy.loss, config))
    found = jax.jit(with_gradient)(params, tokens, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, whole[:2]
    )
    program = str(jax.make_jaxpr(with_gradient)(params, tokens, weights))
    assert " reduce[" in program
    assert "optimization_barrier" in program


def test_untrained_model_costs_about_8_bits_a_byte(tokens):
    cost = loss(CONFIG, model.init(CONFIG, jax.random.key(0)), tokens)
    assert float(cost) == pytest.approx(np.log(256), abs=0.1)


def test_remat_changes_no_gradient(params, tokens):
    plain, *others = (
        jax.jit(
            jax.grad(
                functools.partial(cross_entropy.loss, dataclasses.replace(CONFIG, remat=remat))
            )
        )(params, tokens)
        for remat in (CONFIG.remat, "dots", "full")
    )
    for other in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other
        )


def test_arrays_are_sharded_as_their_names_say():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), model.AXES)
    shapes = jax.eval_shape(functools.partial(model.init, CONFIG), jax.random.key(0))
    found = jax.tree.map(lambda s: s.spec, model.shardings(mesh, {"mu": shapes, "count": 1.0 * 0}))
    assert found["mu"]["layers"]["up_LxDxF"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["mu"]["layers"]["qkv_LxDxGxP"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert found["mu"]["embed_VxD"] == PartitionSpec("tensor", "fsdp")
    assert found["mu"]["ngrams_RxD"][1] == PartitionSpec(None, "fsdp")
    assert found["count"] == PartitionSpec()


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


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("rows", [model.SMALL_TABLE, model.SMALL_TABLE + 1])
def test_embedding_that_is_used_often_has_the_sum_of_all_gradients(on_gpu, rows, monkeypatch):
    """Added one by one in bfloat16, 2,048 ones are 256."""
    monkeypatch.setattr(model.Config, "on_gpu", on_gpu)
    monkeypatch.setattr(model, "NGRAM_BITS", 3)
    config = dataclasses.replace(CONFIG, dtype="bfloat16", ngram=2)
    table = jax.random.normal(jax.random.key(0), (rows, 8), jnp.bfloat16)
    params = {"embed_VxD": table, "ngrams_RxD": [jnp.zeros_like(table)]}
    tokens = jnp.full((2, 1024), 250, jnp.uint8)
    embed = functools.partial(model.embed, config, tokens_BxT=tokens)
    np.testing.assert_array_equal(embed(params), table[tokens])
    found = jax.jit(jax.grad(lambda params: embed(params).sum(dtype=jnp.float32)))(params)
    often = found["embed_VxD"][250], found["ngrams_RxD"][0].max(axis=0)  # but the first of each
    for gradient, exact in zip(often, (2048, 2046), strict=True):
        np.testing.assert_allclose(gradient.astype(np.float32), exact, rtol=2**-8)


def test_heads_must_divide_the_width_evenly():
    with pytest.raises(ValueError, match=r"width 36 .* 4 heads"):
        model.Config(layers=1, width=36, heads=4)
    with pytest.raises(ValueError, match=r"4 heads .* 3 kv_heads"):
        model.Config(layers=1, width=32, heads=4, kv_heads=3)


def test_flops_agree_with_the_compiler():
    config = model.Config(layers=1, width=256, heads=4)  # the compiler counts a loop's body once
    params = model.init(config, jax.random.key(0))
    tokens = jnp.zeros((4, 129), jnp.uint8)
    gradient = jax.jit(jax.grad(functools.partial(cross_entropy.loss, config)))
    cost = gradient.lower(params, tokens).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    assert cost
    counted = cost["flops"] / (4 * 128)
    # The compiler adds what is not a matrix product, a few per cent at this width; attention in
    # four parts leaves out 3/8 of its products, 4 % of all at this context.
    full, causal = (flops.per_token(config, 128, causal) for causal in (False, True))
    assert full - causal == 6 * 256 * 128
    assert causal < counted < 1.1 * full


def test_peak_is_found_by_jax_name_of_the_device():
    assert flops.peak("NVIDIA A100-SXM4-40GB") == 312e12
    assert flops.peak("NVIDIA H100 PCIe") == 756e12
    assert flops.peak("NVIDIA GH200 120GB") == flops.peak("NVIDIA H200") == 989.4e12
    assert flops.peak("cpu") is None
