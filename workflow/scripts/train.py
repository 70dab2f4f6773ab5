"""Train a byte-level transformer, resume after any interruption, and compare it with gzip.

Files beside ``--out`` (when finished): ``metrics.jsonl``, one object per logged step.
Files in ``--state`` (survive a time-out; a rerun goes on from the newest checkpoint):
``checkpoints/``, ``metrics.jsonl``, ``segments.jsonl`` (one object per start of the program),
``settings.json`` and, once finished, ``summary.json``; ``lock`` keeps a second writer out.
"""

import argparse
import fcntl
import glob
import gzip
import hashlib
import json
import math
import os
import socket
import statistics
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import model
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "default": ["python"],
        "description": "text to learn: folders, globs, or python for Python's standard library",
    },
    "validation_bytes": {
        "type": "integer",
        "minimum": 1,
        "default": 131072,
        "description": "held-out text, in bytes; files that it touches are not trained on",
    },
    "steps": {"type": "integer", "minimum": 1, "default": 1200, "description": "steps in all"},
    "layers": {"type": "integer", "minimum": 1, "default": 2, "description": "transformer layers"},
    "width": {
        "type": "integer",
        "minimum": 2,
        "default": 128,
        "description": "model width, an even multiple of heads",
    },
    "heads": {"type": "integer", "minimum": 1, "default": 2, "description": "attention heads"},
    "ngram": {
        "type": "integer",
        "minimum": 1,
        "default": 4,
        "description": "longest n-grams of bytes with embeddings of their own; 1: bytes only",
    },
    "context": {
        "type": "integer",
        "minimum": 8,
        "default": 128,
        "description": "length of a sequence, in bytes",
    },
    "global_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "sequences per step, on all devices together",
    },
    "learning_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1e-2,
        "description": "peak learning rate of AdamW, reached after warm-up; a cosine ends it at 0",
    },
    "warmup_steps": {
        "type": "integer",
        "minimum": 0,
        "default": 50,
        "description": "steps of linear warm-up, fewer than steps",
    },
    "weight_decay": {
        "type": "number",
        "minimum": 0,
        "default": 0.1,
        "description": "decoupled weight decay of AdamW, per unit of learning rate",
    },
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": 2147483647,
        "default": 0,
        "description": "seed of the first parameters, the batches and the sample",
    },
    "dtype": {
        "type": "string",
        "enum": ["float32", "bfloat16"],
        "default": "float32",
        "description": "type of activations; parameters are float32",
    },
    "log_every": {
        "type": "integer",
        "minimum": 1,
        "default": 20,
        "description": "steps per line of metrics",
    },
    "checkpoint_every": {
        "type": "integer",
        "minimum": 1,
        "default": 400,
        "description": "steps between checkpoints",
    },
}
PROMPT = b"\n"
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
Tree = dict[str, Any]


def find_files(source: str) -> list[Path]:
    """Files that one entry of ``data`` names. Ends the program when there are none."""
    if source == "python":
        files = []
        for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
            below[:] = set(below) - NOT_THE_LIBRARY
            files += [Path(folder, name) for name in names if name.endswith(".py")]
    elif Path(source).is_dir():
        files = [path for path in Path(source).rglob("*") if path.is_file()]
    else:
        files = [path for path in map(Path, glob.glob(source, recursive=True)) if path.is_file()]
    return files or harness.fail(f"data: {source} names no file")


def load_data(sources: list[str], validation_bytes: int, context: int) -> tuple[Any, Any, Tree]:
    """Training and validation bytes (uint8), and a record of where they come from.

    Validation is by whole file, so that no file has bytes on both sides: in the order of the
    sha256 of their content, as good as random and the same on every machine, files go to
    validation until it is full (the rest of its last file is not used), the others to training.
    Files of equal content count once.
    """
    contents = {}
    for path in (path for source in sources for path in find_files(source)):
        try:
            content = path.read_bytes()
        except OSError as error:
            harness.fail(f"data: cannot read {path}: {error.strerror}")
        contents[hashlib.sha256(content).digest()] = content
    train, validation = [], b""
    for _, content in sorted(contents.items()):
        if len(validation) < validation_bytes:
            validation += content
        else:
            train.append(content)
    train_bytes, validation = b"".join(train), validation[:validation_bytes]
    if len(validation) < validation_bytes or len(train_bytes) <= context:
        harness.fail(
            f"data: {' '.join(sources)} is too short: its {len(contents)} different files leave "
            f"{len(train_bytes)} bytes for training after {len(validation)} for validation"
        )
    record = {
        "files": len(contents),
        "train_bytes": len(train_bytes),
        "validation_bytes": len(validation),
        "sha256": hashlib.sha256(train_bytes + validation).hexdigest(),
    }
    return np.frombuffer(train_bytes, np.uint8), np.frombuffer(validation, np.uint8), record


def place(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Rows of which every process knows all, as an array split over the devices."""
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def batch(text: np.ndarray, args: argparse.Namespace, step: int) -> np.ndarray:
    """Tokens Bx(T+1) of a step, uint8: windows at random places, given by seed and step alone."""
    random = np.random.default_rng((args.seed, step))
    starts = random.integers(0, len(text) - args.context, args.global_batch)
    return text[starts[:, None] + np.arange(args.context + 1)]


def scoring_windows(text: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows Nx(T+1), uint8, over a text, and weights NxT, float32, that count each byte once.

    A window starts half a context after the one before it and scores the bytes that this one did
    not reach, so all but the first have at least half a context before them. The text's first
    byte comes after a newline.
    """
    stride = context // 2
    count = 1 + math.ceil(max(0, len(text) - context) / stride)
    starts = stride * np.arange(count)
    padded = np.zeros(starts[-1] + context + 1, np.uint8)
    padded[: len(text) + 1] = np.concatenate([np.frombuffer(b"\n", np.uint8), text])
    position = starts[:, None] + np.arange(context)
    new = (position >= starts[:, None] + context - stride) | (starts[:, None] == 0)
    weights = new & (position < len(text))
    return padded[starts[:, None] + np.arange(context + 1)], weights.astype(np.float32)


def unigram_bits(train: np.ndarray, validation: np.ndarray) -> float:
    """Bits per byte of the validation text coded by the training text's byte frequencies.

    A cross entropy, with one added to each count so that a byte new to training has a cost.
    """
    counts = np.bincount(train, minlength=256) + 1
    return float(np.mean(-np.log2(counts / counts.sum())[validation]))


def gzip_bits(text: np.ndarray) -> float:
    """Bits per byte of a text after gzip -9."""
    return 8 * len(gzip.compress(text.tobytes(), 9)) / len(text)


def make_sample(config: model.Config, params: Tree, length: int, seed: int) -> jax.Array:
    """Text of ``length`` bytes that starts with PROMPT, sampled at temperature 0.8."""
    start = (
        jnp.zeros((1, length), jnp.uint8).at[0, : len(PROMPT)].set(jnp.array([*PROMPT], "uint8"))
    )

    def extend(position: Any, text_1xT: jax.Array) -> jax.Array:
        logits_V = model.apply(config, params, text_1xT)[0, position - 1]
        key = jax.random.fold_in(jax.random.key(seed), position)
        byte = jax.random.categorical(key, logits_V / 0.8)
        return text_1xT.at[0, position].set(byte.astype(jnp.uint8))

    return jax.lax.fori_loop(len(PROMPT), length, extend, start)[0]


def train_step(config: model.Config, optimizer: Any, state: Tree, tokens: jax.Array) -> Any:
    """One update. Returns the new state and the step's loss (bits per byte) and gradient norm."""

    def loss_nats(params: Tree) -> jax.Array:
        return model.bits(config, params, tokens).mean() * math.log(2)

    loss, gradient = jax.value_and_grad(loss_nats)(state["params"])
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
    updates, moments = optimizer.update(gradient, state["optimizer"], state["params"])
    state = {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}
    return state, {"loss": loss / math.log(2), "gradient_norm": norm}


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Keep other writers out of a state. Ends the program when there is one."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a+") as file:
        busy = False
        if jax.process_index() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                job = os.environ.get("SLURM_JOB_ID", "none")
                file.write(f"host {socket.gethostname()}, process {os.getpid()}, job {job}")
                file.flush()
            except BlockingIOError:
                busy = True
        # All processes end together: one that ends alone leaves the others waiting for it.
        if multihost_utils.broadcast_one_to_all(np.array(busy)):
            file.seek(0)
            harness.fail(f"state {state} is in use by {file.read()}")
        yield


def read_lines(path: Path) -> list[Tree]:
    """Objects of a JSON Lines file; a last line that was cut short is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_lines(path: Path, lines: list[Tree]) -> None:
    """Replace a JSON Lines file, so that nobody sees half of it. Only the first process writes."""
    if jax.process_index() == 0:
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(path)


def finish(args: argparse.Namespace, summary: Tree) -> None:
    """Write the results: metrics first, and the summary, which says that all is there, last."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(args.out.parent / "metrics.jsonl", read_lines(args.state / "metrics.jsonl"))
    harness.write_json(args.out, summary)


def check_settings(args: argparse.Namespace, data: Tree) -> None:
    """Record what a state is made with, or end the program when it was made with something else."""
    path = args.state / "settings.json"
    settings = {**{name: getattr(args, name) for name in OPTIONS}, "sha256 of data": data["sha256"]}
    before = json.loads(path.read_text()) if path.exists() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            harness.fail(
                f"state {args.state} has {name} {before.get(name)}, not {value}; "
                "delete that folder to start over"
            )
    harness.write_json(path, settings)


def run(args: argparse.Namespace, mesh: Mesh, config: model.Config, began: float) -> None:
    """Train from where the state is to the last step, evaluate and write the results."""
    text, validation, data = load_data(args.data, args.validation_bytes, args.context)
    check_settings(args, data)
    done = args.state / "summary.json"
    if done.exists():
        return finish(args, json.loads(done.read_text()))

    split = NamedSharding(mesh, PartitionSpec(harness.AXIS))
    whole = NamedSharding(mesh, PartitionSpec())
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, args.warmup_steps, args.steps
    )
    learning_rate = jax.jit(schedule)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=args.weight_decay),
    )

    def initial() -> Tree:
        params = model.init(config, jax.random.key(args.seed))
        return {"params": params, "optimizer": optimizer.init(params)}

    checkpoints = ocp.CheckpointManager(
        args.state / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            max_to_keep=2,
            cleanup_tmp_directories=True,
            # The next step reuses the buffers (donation) that would still be on their way to disk.
            enable_async_checkpointing=False,
        ),
    )
    newest = checkpoints.latest_step()
    if newest is None:
        state = jax.jit(initial, out_shardings=whole)()
    else:
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(initial),
        )
        restored = checkpoints.restore(newest, args=ocp.args.StandardRestore(wanted))
        # On the CPU these arrays may lie in memory that is not JAX's own, and the step donates
        # them: JAX 0.4.33 then corrupts the heap.
        state = jax.tree.map(jnp.copy, restored)
    first = (newest or 0) + 1
    metrics = [line for line in read_lines(args.state / "metrics.jsonl") if line["step"] < first]
    segments = read_lines(args.state / "segments.jsonl")
    if segments:
        segments[-1]["last_step"] = first - 1  # a kill may come between checkpoint and record
    segment = {"first_step": first, "last_step": first - 1, "seconds": 0.0}
    segments.append({**segment, "provenance": harness.provenance(args)})
    write_lines(args.state / "metrics.jsonl", metrics)
    write_lines(args.state / "segments.jsonl", segments)

    tokens = place(batch(text, args, 1), split)
    step_function = jax.jit(partial(train_step, config, optimizer), donate_argnums=0)
    run_step = step_function.lower(state, tokens).compile()
    pending: list[Tree] = []  # results since the last line of metrics, fetched all at once
    clock = time.perf_counter()
    for step in range(first, args.steps + 1):
        state, result = run_step(state, place(batch(text, args, step), split))
        pending.append(result)
        save = step % args.checkpoint_every == 0 or step == args.steps
        # Each checkpoint has its line of metrics, so a resumed run averages over the same steps.
        if not save and step % args.log_every:
            continue
        values = jax.device_get(pending)
        step_seconds = (time.perf_counter() - clock) / len(values)
        for number, value in enumerate(values, step + 1 - len(values)):
            if not all(map(math.isfinite, value.values())):
                harness.fail(
                    f"loss {value['loss']} and gradient norm {value['gradient_norm']} at step "
                    f"{number}; the newest checkpoint is of step {segments[-1]['last_step']}"
                )
        line = {
            "step": step,
            **{name: float(np.mean([value[name] for value in values])) for name in result},
            "learning_rate": float(learning_rate(step - 1)),
            "step_seconds": step_seconds,
            "tokens_per_second": args.global_batch * args.context / step_seconds,
        }
        metrics.append(line)
        if jax.process_index() == 0:
            print(" ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
            with (args.state / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if save:
            try:
                checkpoints.save(step, args=ocp.args.StandardSave(state))
            except Exception as error:  # a full disk comes in many wrappings
                reason = harness.first_line(error)
                harness.fail(f"checkpoint of step {step} not written to {args.state}: {reason}")
            segments[-1] |= {"last_step": step, "seconds": time.perf_counter() - began}
            write_lines(args.state / "segments.jsonl", segments)
        pending, clock = [], time.perf_counter()
    checkpoints.close()

    params = state["params"]
    score = jax.jit(lambda p, tokens, weight: jnp.sum(model.bits(config, p, tokens) * weight))
    total_bits = 0.0
    windows, weights = scoring_windows(validation, args.context)
    for i in range(0, len(windows), args.global_batch):
        rows = slice(i, i + args.global_batch)
        missing = [(0, args.global_batch - len(windows[rows])), (0, 0)]
        parts = (place(np.pad(part[rows], missing), split) for part in (windows, weights))
        total_bits += float(score(params, *parts))
    sample = jax.jit(partial(make_sample, config, length=args.context, seed=args.seed))(params)
    segments[-1]["seconds"] = time.perf_counter() - began
    write_lines(args.state / "segments.jsonl", segments)
    summary = {
        "provenance": segments[-1]["provenance"],
        "steps": args.steps,
        "parameters": model.parameter_count(params),
        "flops_per_token": model.flops_per_token(config, args.context),
        "data": data,
        # The last tenth of training, as one batch is a small sample.
        "train_bits_per_byte": statistics.mean(
            line["loss"] for line in metrics if line["step"] > 0.9 * args.steps
        ),
        "validation_bits_per_byte": total_bits / len(validation),
        "unigram_bits_per_byte": unigram_bits(text, validation),
        "gzip_bits_per_byte": gzip_bits(validation),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in metrics),
        "seconds": sum(segment["seconds"] for segment in segments),
        "sample": bytes(np.asarray(sample)).decode(errors="replace"),
        "segments": segments,
    }
    harness.write_json(done, summary)
    finish(args, summary)


def main() -> None:
    """Check what can be checked at once, then run under the lock of the state."""
    began = time.perf_counter()
    parser = harness.parser(__doc__.splitlines()[0], OPTIONS)
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")
    args = parser.parse_args()
    mesh = harness.start(args)
    if args.global_batch % args.devices:
        harness.fail(
            f"global_batch {args.global_batch} is not a multiple of {args.devices} devices"
        )
    if args.warmup_steps >= args.steps:
        harness.fail(f"warmup_steps {args.warmup_steps} must be fewer than steps {args.steps}")
    try:
        config = model.Config(args.layers, args.width, args.heads, args.dtype, args.ngram)
    except ValueError as error:
        harness.fail(str(error))
    args.state = args.state.absolute()  # orbax asks for it
    if digest := harness.container_digest(args):  # another image is another training
        args.state = args.state.with_name(f"{args.state.name}-{digest[:8]}")
    with lock(args.state):
        run(args, mesh, config, began)


if __name__ == "__main__":
    main()
