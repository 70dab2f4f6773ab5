"""Write a training's parameters for other programs, or have a training begin with such.

Run in the container, or where JAX and Orbax are:

    jaxway exec --here python3 workflow/scripts/export.py results/train/a/state FOLDER
    jaxway exec --here python3 workflow/scripts/export.py --back FOLDER STATE

The folder has model.safetensors and config.json: by default for transformers, with --own with the
names that the arrays have here, and with model.py and load.py, which load them without our
workflow. --back makes that one a state to begin from: `from: STATE@0`, `restart: true`.
"""

import argparse
import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxway_job import checkpoints, exporting, load_exported, model, origin, runtime
from jaxway_shared import identity, presets, training
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError, fail
from jaxway_shared.identity import Identity

MODULES = ("jaxway_job/model.py", "jaxway_shared/presets.py")  # that load.py needs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--own", action="store_true", help="under our names, with load.py")
    parser.add_argument("--back", action="store_true", help="the other way: from --own to a state")
    parser.add_argument("source", help="a training's state, STATE@<step> or STATE@best; or FOLDER")
    parser.add_argument("out", type=Path, help="folder to write, which must not be there")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    out = args.out.absolute()
    if out.exists():
        fail("JW316", f"{out} is there already")
    with runtime.explain_write(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            part = Path(folder, out.name)
            part.mkdir()
            if args.back:
                import_own(Path(args.source), part)
            else:
                export(args.source, part, args.own)
            part.rename(out)


def export(source: str, out: Path, own: bool) -> None:
    """Write the model of a training's checkpoint."""
    begin = origin.find(source if "/" in source else f"./{source}", Path())
    options = Identity.read(begin.state).options
    config, params = read_model(begin, options)
    print(f"step {begin.step} of {begin.state}: {model.parameter_count(params):,} parameters")
    if own:
        content, tensors = exporting.own_config(config), exporting.own_tensors(params)
        shutil.copy(load_exported.__file__, out / "load.py")
        for module in MODULES:
            (out / module).parent.mkdir(parents=True)
            shutil.copy(identity.SCRIPTS / module, out / module)
    else:
        if config.ngram > 1:
            fail("JW316", "transformers has no embeddings of n-grams: train with `ngram: 1`")
        record = data_of(begin.state)
        content = exporting.qwen3_config(
            config, options["context"], record.end_of_text if record else None
        )
        if record and (tokenizer := tokenizer_of(record)):
            (out / "tokenizer.json").write_bytes(tokenizer)
            kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
            (out / "tokenizer_config.json").write_text(json.dumps(kind) + "\n")
        tensors = exporting.qwen3_tensors(config, params)
    (out / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    exporting.write_safetensors(out / "model.safetensors", tensors)


def read_model(begin: origin.Origin, options: dict[str, Any]) -> tuple[model.Config, model.Params]:
    """The model that a checkpoint has."""
    shape = {name: options.get(name) for name in presets.SHAPE}
    if not shape["layers"]:
        fail("JW316", f"{begin.state} is of no training by `program: train`")
    try:
        there = checkpoints.saved_shapes(begin.checkpoint)
    except Exception as error:  # whatever Orbax makes of a folder that is none of its own
        fail("JW304", f"{begin} cannot be read: {runtime.first_line(error)}")
    vocabulary = int(there["params/embed_VxD"].partition("x")[0])
    config = model.Config(vocabulary=vocabulary, **shape)  # type: ignore[arg-type]
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), model.AXES)
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        model.shardings(mesh, shapes),
    )
    state, problem = checkpoints.read(begin.checkpoint, {"params": like})
    if problem:
        fail("JW304", f"{begin} cannot be read: {problem}")
    return config, state["params"]


def data_of(state: Path) -> DataRecord | None:
    """The record of what a finished training has learnt; None, it is not finished."""
    with suppress(OSError, UserError):
        summary = training.read_summary(state / training.SUMMARY)
        if isinstance(summary, training.ModelSummary):
            return summary.data
    return None


def tokenizer_of(record: DataRecord) -> bytes | None:
    """The tokenizer's file; None where it has changed, or there is none."""
    with suppress(OSError):
        content = Path(record.tokenizer).read_bytes()
        if hashlib.sha256(content).hexdigest() == record.tokenizer_sha256:
            return content
    return None


def import_own(folder: Path, state: Path) -> None:
    """Write a state at whose step 0 a training may begin."""
    try:
        config, params = load_exported.load(folder)
        file = folder / "model.safetensors"
        digest = identity.sha256(file, identity.key(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail("JW316", f"{folder} is no model that --own has written: {runtime.first_line(error)}")
    saved = checkpoints.Checkpoints(state, keep=1)
    saved.save(0, {"params": jax.tree.map(jnp.asarray, params)})
    saved.wait()
    this = Identity(exporting.own_config(config), None, {file.name: digest}, "")
    (state / identity.FILE).write_text(json.dumps(this.to_json()) + "\n")


if __name__ == "__main__":
    main()
