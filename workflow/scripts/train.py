"""Train a transformer, resume after any interruption, and compare it with gzip.

Written beside ``--out`` when finished: ``metrics.jsonl``, an object for each logged step. Written
to ``--state`` meanwhile: what the next job resumes from (docs/output.md).
"""

import argparse
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxway_job import dataset, measure, model, origin, runtime, training_state
from jaxway_job.startup_timer import StartupTimer
from jaxway_job.training_loop import Training
from jaxway_job.training_setup import TrainingSetup
from jaxway_shared import presets, training_rules
from jaxway_shared.errors import fail

# "affects_result" is false where a training may resume with another value.
OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": "integer", "minimum": 1, "default": 1200, "description": "steps in all"},
    "preset": {
        "type": "string",
        "enum": ["tiny", "124M", "350M", "774M", "1.3B", "2.7B", "6.7B"],
        "default": "tiny",
        "description": "model, named by its size (docs/training.md); those of the next options "
        "up to learning_rate that are not null override it",
    },
    "layers": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "transformer layers",
    },
    "width": {
        "type": ["integer", "null"],
        "minimum": 2,
        "default": None,
        "description": "model width, an even multiple of heads",
    },
    "heads": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "attention heads",
    },
    "kv_heads": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "heads of keys and values, each for a group of heads; null: as many as "
        "heads",
    },
    "mlp": {
        "type": "string",
        "enum": ["relu2", "gated"],
        "default": "relu2",
        "description": "MLP: squared ReLU, or gated by SiLU (SwiGLU)",
    },
    "mlp_width": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "width of the MLP; null: 4 x width, gated 8/3 x width, rounded up to 64s",
    },
    "tied_embeddings": {
        "type": ["boolean", "null"],
        "default": None,
        "description": "whether the head is the matrix of the embeddings",
    },
    "context": {
        "type": ["integer", "null"],
        "minimum": 8,
        "default": None,
        "description": "length of a sequence, in tokens",
    },
    "ngram": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "longest n-grams of tokens with embeddings of their own; 1: no n-grams",
    },
    "document_attention": {
        "type": "boolean",
        "default": False,
        "description": "attention stops behind end_of_text; on a GPU it is XLA's then, not cuDNN's",
    },
    "learning_rate": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "peak learning rate of AdamW, after warm-up",
    },
    "mixture": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
        "minProperties": 1,
        "default": None,
        "description": "shares of the sources of data in what is read, by name, as in "
        "{web: 3, code: 1}. Null: all are read once before one is read again",
    },
    "global_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "sequences per step, on all devices together",
    },
    "gradient_accumulation_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "parts of a batch, one after the other: less memory for the same update",
    },
    "warmup_steps": {
        "type": "integer",
        "minimum": 0,
        "default": 50,
        "description": "steps of linear warm-up, fewer than schedule_steps",
    },
    "schedule": {
        "type": "string",
        "enum": ["cosine", "linear", "constant", "wsd"],
        "default": "cosine",
        "description": "learning rate after warm-up: falls by a cosine or a line, stays, or stays "
        "and falls by a line in the last decay_steps (wsd: warm-up, stable, decay)",
    },
    "schedule_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "step at which the learning rate has fallen to min_learning_rate, where it "
        "stays; null: the last. So a longer or shorter training keeps its curve",
    },
    "decay_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "steps in which the rate of wsd falls; null: a fifth of schedule_steps",
    },
    "min_learning_rate": {
        "type": "number",
        "minimum": 0,
        "default": 0.0,
        "description": "learning rate at the end of the schedule, unless it is constant",
    },
    "beta1": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0.9,
        "description": "decay of AdamW's mean of gradients",
    },
    "beta2": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0.98,
        "description": "decay of AdamW's mean of squared gradients",
    },
    "epsilon": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1e-8,
        "description": "added by AdamW to the root of the latter",
    },
    "clip_norm": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "norm to which a longer gradient is shortened; 0: none is",
    },
    "weight_decay": {
        "type": "number",
        "minimum": 0,
        "default": 0.1,
        "description": "decoupled weight decay of AdamW, per unit of learning rate",
    },
    "decay_embeddings": {
        "type": "boolean",
        "default": True,
        "description": "whether embeddings decay, too; all other parameters are matrices",
    },
    "from": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "training at whose checkpoint this one begins: `<run>`, `<run>@<step>` or "
        "`<run>@best`, with a run of this configuration or the folder of a state",
    },
    "restart": {
        "type": "boolean",
        "default": False,
        "description": "with `from`: take the parameters alone, and count steps from 0; else all "
        "goes on: steps, schedule, moments and the place in the data",
    },
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": 2147483647,
        "default": 0,
        "description": "seed of the initial parameters, the batches and the sample",
    },
    "dtype": {
        "type": ["string", "null"],
        "enum": ["float32", "bfloat16", None],
        "default": None,
        "description": "type of activations; parameters are float32. Null: bfloat16 on a GPU",
    },
    "remat": {
        "type": "string",
        "enum": ["none", "dots", "full"],
        "default": "none",
        "description": "what the backward pass recomputes to save memory: all but matrix products "
        "(dots), everything (full)",
    },
    "unroll": {
        "type": "boolean",
        "default": True,
        "affects_result": False,
        "description": "layers one after the other in the compiled program, in place of a loop: "
        "faster, but many layers compile longer",
    },
    "xla": {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["boolean", "integer", "number", "string", "null"]},
        "default": None,
        "affects_result": False,
        "description": "options of XLA's compiler for the step, as `{xla_gpu_autotune_level: 0}` "
        "(docs/training.md)",
    },
    "fsdp": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "affects_result": False,
        "description": "devices over which parameters, optimizer state and batch are sharded",
    },
    "tensor": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "affects_result": False,
        "description": "devices over which heads, MLP and vocabulary are sharded; the remaining "
        "devices share the batch",
    },
    "log_every": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "steps per line of metrics",
    },
    "validate_every": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "steps between validations on a sample of the held-out text, with text that "
        "the model writes; the best one's checkpoint is kept. Null: none",
    },
    "validate_tokens": {
        "type": "integer",
        "minimum": 1,
        "default": 16384,
        "description": "tokens of that sample, spread evenly over the text",
    },
    "checkpoint_minutes": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 10,
        "affects_result": False,
        "description": "minutes between checkpoints; one is written after the first step, too",
    },
    "keep_checkpoints": {
        "type": "integer",
        "minimum": 1,
        "default": 2,
        "affects_result": False,
        "description": "newest checkpoints to keep",
    },
    "keep_every": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "affects_result": False,
        "description": "steps between checkpoints to keep, all of them, beside newest and best",
    },
    "profile": {
        "type": ["object", "null"],
        "properties": {
            "first": {"type": "integer", "minimum": 1},
            "steps": {"type": "integer", "minimum": 1},
        },
        "required": ["first", "steps"],
        "additionalProperties": False,
        "default": None,
        "affects_result": False,
        "description": "trace of some steps, as `{first: 20, steps: 3}` (docs/training.md)",
    },
    "hang_minutes": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 10,
        "affects_result": False,
        "description": "minutes after which a step that does not end is aborted",
    },
}
OOM_ADVICE = "raise gradient_accumulation_steps, fsdp or remat, or lower global_batch"


def main() -> None:
    """Check what can be checked at once, then train."""
    timer = StartupTimer()
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_arguments(parser)
    parser.add_argument(
        "--data-record", type=Path, required=True, help="record of the prepared data (JSON)"
    )
    args = parser.parse_args()
    vars(args).update(presets.resolve(vars(args)))
    begin = origin.find(vars(args)["from"], args.state) if vars(args)["from"] else None
    check(args, begin)
    data = dataset.load(args.data_record, args.mixture)
    if args.document_attention and data.record.end_of_text is None:
        fail("JW029", "document_attention needs end_of_text")
    # By content: the same run may be another one later.
    of = {"from": begin.identity, "from_step": begin.step} if begin else {}
    identity = training_state.identity_of(args, "train", OPTIONS, data.record.sha256, **of)
    vars(args)["from"] = begin and str(begin)  # in the provenance
    with training_state.locked_state(args, identity, origin.extend) as folder:
        if training_state.rewrite_results(folder, args.out):
            return
        # Before JAX 0.5 the first parameters would depend on how they are sharded.
        jax.config.update("jax_threefry_partitionable", True)
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
        devices = runtime.start(args).devices
        mesh = Mesh(devices.reshape(-1, args.fsdp, args.tensor), model.AXES)
        timer.mark("devices")
        with measure.explain("this training", OOM_ADVICE):
            setup = TrainingSetup(args, data, mesh)
            Training(setup, folder, timer, begin).run()


def check(args: argparse.Namespace, begin: origin.Origin | None) -> None:
    """End the program if options do not fit together."""
    for option, expected in training_rules.violations(vars(args), args.devices):
        fail("JW307", f"{option} must be {expected}, not {getattr(args, option)}")
    if begin and not args.restart and args.steps <= begin.step:
        fail(
            "JW307",
            f"steps must be more than the {begin.step} of the checkpoint, not {args.steps}, "
            "unless `restart` is true",
        )


if __name__ == "__main__":
    main()
