"""A model's parameters as files of safetensors, for programs other than ours.

The format: the length of a JSON header in 8 bytes, the header, which has type, shape and offsets of
each tensor, and the tensors (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxway_shared import presets

from jaxway_job import model

Tensors = dict[str, np.ndarray[Any, Any]]


def write_safetensors(file: Path, tensors: Tensors) -> None:
    """Write arrays of float32."""
    header, end = {}, 0
    for name, x in tensors.items():
        begin, end = end, end + x.nbytes
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors' offset is to be a multiple of 8
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            out.write(np.ascontiguousarray(x, "<f4").data)


def own_tensors(params: model.Params) -> Tensors:
    """Parameters as they are, by paths such as ``layers/up_LxDxF``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path): np.asarray(x)
        for path, x in leaves
    }


def own_config(config: model.Config) -> dict[str, Any]:
    """The arguments of the model's Config that shape it."""
    return {name: getattr(config, name) for name in ("vocabulary", *presets.SHAPE)}


# -------------------------------------------------------------------------- Hugging Face: Qwen3

# Of the architectures that transformers has, Qwen3 differs least: RMSNorm before and after all
# layers, normalised queries and keys, the same rotation. Gains, which we do not have, are ones. The
# embeddings are written as our norm behind them leaves them. Squared ReLU is ReLU, gated by itself.


def qwen3_tensors(config: model.Config, params: model.Params) -> Tensors:
    """Parameters under the names, and with the axes, of Qwen3."""
    embed_VxD = np.asarray(model.norm(params["embed_VxD"]))
    tensors = {"model.embed_tokens.weight": embed_VxD}
    layers = {name: np.asarray(x) for name, x in params["layers"].items()}
    for number in range(config.layers):
        layer = {name: x[number] for name, x in layers.items()}
        tensors |= {
            f"model.layers.{number}.{name}.weight": x for name, x in qwen3_layer(config, layer)
        }
    tensors["model.norm.weight"] = np.ones(config.width, np.float32)
    return tensors | {"lm_head.weight": np.asarray(model.head(config, params)).T}


def qwen3_layer(
    config: model.Config, layer: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Name and value of each parameter of a layer; a matrix has its output first."""
    D, K = config.width, config.width // config.heads
    for place in ("input", "post_attention"):
        yield f"{place}_layernorm", np.ones(D, np.float32)
    parts = np.split(layer["qkv_LxDxGxP"], [-2 * K, -K], axis=-1)
    for name, part_DxGxP in zip("qkv", parts, strict=True):
        yield f"self_attn.{name}_proj", part_DxGxP.reshape(D, -1).T
    for name in "qk":
        yield f"self_attn.{name}_norm", np.ones(K, np.float32)
    yield "self_attn.o_proj", layer["out_LxHxKxD"].reshape(D, D).T
    yield "mlp.gate_proj", layer.get("gate_LxDxF", layer["up_LxDxF"]).T
    yield "mlp.up_proj", layer["up_LxDxF"].T
    yield "mlp.down_proj", layer["down_LxFxD"].T


def qwen3_config(config: model.Config, context: int, end_of_text: int | None) -> dict[str, Any]:
    """Content of config.json."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.F,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.G,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu" if config.mlp == "gated" else "relu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,  # the norm behind the embeddings is not the head's
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
