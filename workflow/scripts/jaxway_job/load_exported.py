"""Load the model in this folder: its format is safetensors, its program model.py in jaxway_job.

config, params = load()
logits = model.logits(config, params, tokens)  # B x T integers; B x T x V
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxway_job import model


def load(folder: Path = Path(__file__).parent) -> tuple[model.Config, model.Params]:
    """The model's shape and parameters."""
    data = np.memmap(folder / "model.safetensors", np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    params: dict[str, Any] = {"ngrams_RxD": []}
    for name, tensor in json.loads(data[8:start].tobytes()).items():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        array = data[begin:end].view("<f4").reshape(tensor["shape"])
        parent, _, child = name.rpartition("/")
        if parent == "ngrams_RxD":  # in the order of their length
            params[parent].append(array)
        else:
            (params.setdefault(parent, {}) if parent else params)[child] = array
    return model.Config(**json.loads((folder / "config.json").read_text())), params
