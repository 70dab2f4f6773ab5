"""Exported models compute the same elsewhere, and come back as they were."""

import json
import os
import shutil
import subprocess
import sys

import export
import exported
import jax
import numpy as np
import pytest
from jaxway_job import checkpoints, load_exported, model, origin

OWN = model.Config(1, 32, 4, 128, kv_heads=2, mlp="gated", ngram=3)
CODE = """
import jax, load, numpy, sys
config, params = load.load()
tokens = numpy.load(sys.argv[1])
logits = jax.jit(load.model.logits, static_argnums=0)(config, params, tokens)
numpy.save(sys.argv[2], logits)
"""


def logits(config, params):
    return jax.jit(model.logits, static_argnums=0)(config, params, exported.tokens())


@pytest.fixture
def run(monkeypatch):
    """Function that runs the program here, with these words."""

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
        export.main()

    return main


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """State, parameters and exported folder of a model with n-grams."""
    folder = tmp_path_factory.mktemp("own")
    params = exported.make_state(folder / "state", OWN)
    with pytest.MonkeyPatch.context() as patch:
        words = ["export.py", "--own", f"{folder / 'state'}@7", str(folder / "model")]
        patch.setattr(sys, "argv", words)
        export.main()
    return folder / "state", params, folder / "model"


def read_safetensors(file):
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0
    return {
        name: np.frombuffer(data[start:], "<f4", np.prod(x["shape"]), x["data_offsets"][0]).reshape(
            x["shape"]
        )
        for name, x in json.loads(data[8:start]).items()
    }


def qwen3(config, weights, tokens):
    """Logits of a sequence, by what is known of the architecture."""
    heads, groups, size = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    act = {"relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x))}
    turn = np.arange(len(tokens))[:, None] * config["rope_theta"] ** (-np.arange(0, size, 2) / size)
    cos, sin = (np.tile(f(turn), 2)[:, None] for f in (np.cos, np.sin))

    def norm(x, name):
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return weights[f"{name}.weight"] * x / np.sqrt(mean + config["rms_norm_eps"])

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T

    def rotate(x):
        return x * cos + np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        read, block = norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn"
        q, k, v = (linear(read, f"{block}.{n}_proj").reshape(len(x), -1, size) for n in "qkv")
        q, k = rotate(norm(q, f"{block}.q_norm")), rotate(norm(k, f"{block}.k_norm"))
        k, v = (np.repeat(y, heads // groups, axis=1) for y in (k, v))
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(size)
        scores = np.exp(np.where(np.tri(len(x)), scores, -np.inf))
        mixed = np.einsum("hts,shk->thk", scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(mixed.reshape(len(x), -1), f"{block}.o_proj")
        read, block = norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp"
        gate = act[config["hidden_act"]](linear(read, f"{block}.gate_proj"))
        x = x + linear(gate * linear(read, f"{block}.up_proj"), f"{block}.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


@pytest.mark.parametrize("case", exported.CASES)
def test_export_for_transformers_has_the_same_logits(run, tmp_path, case):
    """Beside `benchmarks/transformers_logits.py`, which asks transformers itself."""
    config = exported.CASES[case]
    params = exported.make_state(tmp_path / "state", config)
    run(f"{tmp_path / 'state'}@7", tmp_path / "model")
    there = json.loads((tmp_path / "model/config.json").read_text())
    weights = read_safetensors(tmp_path / "model/model.safetensors")
    ours = logits(config, params)
    assert np.std(ours) > 0.5
    for sequence, expected in zip(exported.tokens(), ours, strict=True):
        np.testing.assert_allclose(qwen3(there, weights, sequence), expected, atol=1e-4)
    assert there["max_position_embeddings"] == exported.CONTEXT


def test_export_computes_the_same_without_the_workflow(own, tmp_path):
    _, params, folder = own
    np.save(tmp_path / "tokens.npy", exported.tokens())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-c", CODE, tmp_path / "tokens.npy", tmp_path / "logits.npy"]
    subprocess.run(words, env=environment, cwd=folder, check=True)
    found = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(found, logits(OWN, params), rtol=1e-5, atol=1e-5)
    config, loaded = load_exported.load(folder)
    assert config == OWN
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_export_comes_back_as_a_state_to_begin_from(run, own, tmp_path):
    _, params, folder = own
    run("--back", folder, tmp_path / "state")
    begin = origin.find(f"{tmp_path / 'state'}@0", tmp_path)
    config, found = export.read_model(begin, {**vars(OWN), "mlp_width": OWN.F})
    assert config.F == OWN.F
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert checkpoints.saved_shapes(begin.checkpoint)["params/embed_VxD"] == "128x32"


def test_what_cannot_be_exported_is_refused(run, own, tmp_path):
    state, _, folder = own
    with pytest.raises(SystemExit, match="no embeddings of n-grams: train with `ngram: 1`"):
        run(f"{state}@7", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(SystemExit, match="is there already"):
        run(f"{state}@7", folder)
    with pytest.raises(SystemExit, match="@8 is not there; checkpoints of steps 7"):
        run("--own", f"{state}@8", tmp_path / "model")
    with pytest.raises(SystemExit, match=r"is not finished, so write .*; checkpoints of steps 7"):
        run("--own", state, tmp_path / "model")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(SystemExit, match="broken is no model that --own has written"):
        run("--back", broken, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
