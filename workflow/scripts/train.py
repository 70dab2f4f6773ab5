"""Train a transformer, go on after any interruption, and compare it with gzip.

Written beside ``--out`` when finished: ``metrics.jsonl``, one object per logged step. Written in
``--state`` all the while: what the next job goes on from (docs/output.md).
"""

import argparse
import json
import math
import os
import resource
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxway_job import dataset, flops, measure, model, runtime, training_state
from jaxway_job.checkpoints import Checkpoints
from jaxway_job.watchdog import GO_ON, STOP, Watch
from jaxway_shared import presets, training_rules
from jaxway_shared.data_record import DataRecord

# "same" is false where a training may go on with another value: its results stay the same.
OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": "integer", "minimum": 1, "default": 1200, "description": "steps in all"},
    "preset": {
        "type": "string",
        "enum": ["tiny", "124M", "350M", "774M", "1B", "3B", "7B"],
        "default": "tiny",
        "description": "size of the model; of the next six, those that are not null replace it",
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
        "description": "longest n-grams of tokens with embeddings of their own; 1: tokens only",
    },
    "learning_rate": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "peak learning rate of AdamW, reached after warm-up; a cosine ends it at 0",
    },
    "global_batch": {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "sequences per step, on all devices together",
    },
    "microbatches": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "parts of a batch, one after the other: less memory for the same step",
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
        "type": ["string", "null"],
        "enum": ["float32", "bfloat16", None],
        "default": None,
        "description": "type of activations; parameters are float32. Null, bfloat16 on a GPU",
    },
    "remat": {
        "type": "string",
        "enum": ["none", "dots", "full"],
        "default": "none",
        "description": "what the backward pass computes again to save memory: all but matrix "
        "products (dots), everything (full)",
    },
    "fsdp": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "same": False,
        "description": "devices over which parameters and optimizer are split, and the batch",
    },
    "tensor": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "same": False,
        "description": "devices over which heads, MLP and vocabulary are split; the rest of all "
        "devices share the batch",
    },
    "log_every": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "steps per line of metrics",
    },
    "checkpoint_minutes": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 10,
        "same": False,
        "description": "minutes between checkpoints; one is written after the first step too",
    },
    "keep_checkpoints": {
        "type": "integer",
        "minimum": 1,
        "default": 2,
        "same": False,
        "description": "checkpoints to keep, the newest",
    },
    "hang_minutes": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 10,
        "same": False,
        "description": "minutes after which a step that does not end is given up",
    },
}
ADVICE = "raise microbatches, fsdp or remat, or lower global_batch"  # when memory is short
PROMPT = b"\n"
SAMPLE = 128  # tokens
Tree = dict[str, Any]


def make_sample(config: model.Config, params: Tree, length: int, seed: int) -> jax.Array:
    """Text of ``length`` bytes that starts with PROMPT, sampled at temperature 0.8."""
    start = (
        jnp.zeros((1, length), jnp.uint8).at[0, : len(PROMPT)].set(jnp.array([*PROMPT], "uint8"))
    )

    def extend(position: Any, text_1xT: jax.Array) -> jax.Array:
        logits_V = model.logits(config, params, text_1xT)[0, position - 1]
        key = jax.random.fold_in(jax.random.key(seed), position)
        byte = jax.random.categorical(key, logits_V / 0.8)
        return text_1xT.at[0, position].set(byte.astype(jnp.uint8))

    return jax.lax.fori_loop(len(PROMPT), length, extend, start)[0]


def train_step(
    config: model.Config,
    optimizer: Any,
    microbatches: int,
    state: Tree,
    tokens_BxT1: jax.Array,
    wishes: jax.Array,
) -> Any:
    """One update. Returns the new state and the step's ``loss`` (nats per token), gradient norm
    and the greatest of the processes' wishes, which all learn with the step itself."""
    gradient_of = jax.value_and_grad(partial(model.loss, config))

    def add(sums: Any, part: jax.Array) -> Any:
        return jax.tree.map(jnp.add, sums, gradient_of(state["params"], part)), None

    if microbatches == 1:
        loss, gradient = gradient_of(state["params"], tokens_BxT1)
    else:
        # Each device's rows are spread over all parts, so no row moves to another device.
        parts = tokens_BxT1.reshape(-1, microbatches, tokens_BxT1.shape[1]).swapaxes(0, 1)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state["params"]))
        sums, _ = jax.lax.scan(add, zeros, parts)
        loss, gradient = jax.tree.map(lambda x: x / microbatches, sums)
    updates, moments = optimizer.update(gradient, state["optimizer"], state["params"])
    state = {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    result = {"loss": loss, "gradient_norm": norm, "wish": wishes.max()}
    return state, result


def read_json(path: Path) -> Tree:
    """Content of a JSON file. Ends the program when there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        runtime.fail(f"{path} cannot be read: {error}")


def check_settings(folder: Path, args: argparse.Namespace, record: DataRecord) -> None:
    """Record what a state is made with, or end the program when it was made with something else."""
    path = folder / "settings.json"
    settings = {name: getattr(args, name) for name, o in OPTIONS.items() if o.get("same", True)}
    settings["sha256 of data"] = record.sha256
    before = read_json(path) if path.exists() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            runtime.fail(
                f"state {folder} has {name} {before.get(name)}, not {value}; "
                "delete that folder to start over"
            )
    runtime.write_json(path, settings)


def peak_memory() -> int:
    """Most memory, in bytes, that a device of this process has held, or on the CPU the process."""
    used = jax.local_devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(used.get("peak_bytes_in_use", host))


class Laps(dict[str, float]):
    """Seconds that each part of a start took, from the start of the process on."""

    def __init__(self) -> None:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self.began = self.last = time.perf_counter() - age
        self.lap("imports")

    def lap(self, name: str) -> None:
        """Note that a part has ended now."""
        now = time.perf_counter()
        self[name], self.last = now - self.last, now


class Training:
    """A training: what stays the same from its first step to its last."""

    def __init__(self, args: argparse.Namespace, folder: Path, mesh: Mesh, laps: Laps) -> None:
        self.args, self.folder, self.laps = args, folder, laps
        self.data = dataset.load(args.data_record)
        check_settings(folder, args, self.data.record)
        device = mesh.devices.flat[0]
        self.config = model.Config(
            layers=args.layers,
            width=args.width,
            heads=args.heads,
            ngram=args.ngram,
            vocabulary=math.ceil(self.data.record.vocabulary / 128) * 128,  # for matrix units
            dtype=args.dtype or ("bfloat16" if device.platform == "gpu" else "float32"),
            remat=args.remat,
            mesh=mesh,
        )
        self.by_batch = NamedSharding(mesh, model.BATCH)
        self.by_device = NamedSharding(mesh, PartitionSpec(model.AXES))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.schedule = optax.warmup_cosine_decay_schedule(
            0.0, args.learning_rate, args.warmup_steps, args.steps
        )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(self.schedule, b1=0.9, b2=0.98, weight_decay=args.weight_decay),
        )
        self.shapes = jax.eval_shape(self.initial)
        self.shardings = model.shardings(mesh, self.shapes)
        peak = flops.peak(device.device_kind)
        self.peak = peak and peak * mesh.size
        self.checkpoints = Checkpoints(folder / "checkpoints", args.keep_checkpoints)
        self.watch = Watch(folder, runtime.place(args), args.checkpoint_minutes, args.hang_minutes)
        # Since the last line of metrics.
        self.steps, self.step_seconds, self.waited, self.blocked, self.clock = 0, 0.0, 0.0, 0.0, 0.0
        laps.lap("data")

    def initial(self) -> Tree:
        """The state before the first step."""
        params = model.init(self.config, jax.random.key(self.args.seed))
        return {"params": params, "optimizer": self.optimizer.init(params)}

    def restore(self) -> tuple[int, Tree]:
        """Number of the first step to do, and the state before it."""
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )
        done, state = self.checkpoints.restore(like)
        if not done:
            state = jax.jit(self.initial, out_shardings=self.shardings)()
        provenance = runtime.provenance(self.args)
        self.segment = training_state.Segment(self.folder, done, self.laps.began, provenance)
        self.metrics = training_state.read_lines(self.folder / "metrics.jsonl")
        earlier = (segment.get("save_seconds", 0.0) for segment in self.segment.earlier)
        self.checkpoints.longest = max(earlier, default=0.0)
        self.note(done)
        if runtime.first_process():
            doing = f"goes on from step {done}" if done else "starts"
            print(f"{doing}, {self.args.steps} steps in all; state {self.folder}", flush=True)
        self.laps.lap("state")
        return done + 1, state

    def note(self, step: int) -> None:
        """Write down that all up to a step is safe."""
        training_state.write(self.folder / "step", f"{step}\n")
        self.segment.note(step, startup=self.laps, save_seconds=self.checkpoints.longest)

    def batch(self, step: int) -> jax.Array:
        """Tokens Bx(T+1) of a step; every process reads the rows of its own devices."""
        size, context = self.args.global_batch, self.args.context
        starts = dataset.starts(self.data, self.args.seed, step, size, context)
        return jax.make_array_from_callback(
            (size, context + 1),
            self.by_batch,
            lambda index: dataset.rows(self.data, starts[index[0]], context),  # type: ignore[index]
        )

    def run(self) -> None:
        """Train from where the state is to the last step, or until this job's time is over."""
        args, watch, checkpoints = self.args, self.watch, self.checkpoints
        first, state = self.restore()
        shape = ((args.devices,), self.by_device)

        def wishes() -> jax.Array:
            wish = watch.wish(self.step_seconds, checkpoints.longest)
            return jax.make_array_from_callback(*shape, lambda _: np.full(1, wish, np.int32))

        step_function = jax.jit(
            partial(train_step, self.config, self.optimizer, args.microbatches),
            out_shardings=(self.shardings, self.whole),
            donate_argnums=0,
        )
        run_step = step_function.lower(state, self.batch(1), wishes()).compile()
        multihost_utils.sync_global_devices("compiled")  # nobody is to be missed for compiling
        self.laps.lap("compile")
        watch.start()
        self.clock = time.perf_counter()
        pending: list[tuple[int, Any]] = []
        for step in range(first, args.steps + 1):
            watch.begin(step)
            begin = time.perf_counter()
            tokens = self.batch(step)
            self.waited += time.perf_counter() - begin
            state, result = run_step(state, tokens, wishes())
            pending.append((step, result))
            # The device computes this step while the one before is looked at. The first is looked
            # at, and saved, at once: a full disk is not to be found after hours.
            must_save = step in (1, args.steps)
            wish = GO_ON
            while len(pending) > (not must_save):
                wish = max(wish, self.look(*pending.pop(0)))
            if wish or must_save:
                for earlier in pending:
                    self.look(*earlier)
                pending = []
                begin = time.perf_counter()
                # Its lines are not to be lost where the steps are not.
                training_state.sync(self.folder / "metrics.jsonl")
                checkpoints.save(step, state)
                watch.saved = time.monotonic()
                watch.begin(step)
                if wish == STOP or step == args.steps:
                    checkpoints.finish()
                self.blocked += time.perf_counter() - begin
            if checkpoints.finished():
                self.note(checkpoints.newest())
            if wish == STOP and step < args.steps:
                training_state.to_be_continued(
                    f"{watch.why()}; step {step} of {args.steps} is safe"
                )
        watch.begin(args.steps)
        self.finish(state["params"])

    def look(self, step: int, result: Tree) -> int:
        """Take a step's result, log it if it is time to, and return the wish that it brings."""
        try:
            values = jax.device_get(result)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            # A process is gone.
            self.watch.give_up(f"step {step} failed ({runtime.first_line(error)})")
        loss, norm = float(values["loss"]), float(values["gradient_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.checkpoints.finish()
            runtime.fail(
                f"loss {loss} and gradient norm {norm} at step {step}; the newest checkpoint is of "
                f"step {self.checkpoints.newest()}"
            )
        self.steps += 1
        seconds = time.perf_counter() - self.clock
        self.step_seconds = seconds / self.steps
        if "first_step" not in self.laps:
            self.laps.lap("first_step")
        if step % self.args.log_every == 0 or step == self.args.steps:
            self.log(step, loss, norm, seconds)
            self.steps, self.waited, self.blocked, self.clock = 0, 0.0, 0.0, time.perf_counter()
        return int(values["wish"])

    def log(self, step: int, loss: float, norm: float, seconds: float) -> None:
        """Write a line of metrics about a step, and the speed of those since the last line."""
        speed = self.args.global_batch * self.args.context * self.steps / seconds
        mfu = {
            name: self.peak
            and speed * flops.per_token(self.config, self.args.context, causal) / self.peak
            for name, causal in (("mfu", False), ("mfu_causal", True))
        }
        line = {
            "step": step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": float(self.schedule(step - 1)),
            "tokens_per_second": speed,
            "step_seconds": self.step_seconds,
            "data_seconds": self.waited / self.steps,
            "checkpoint_seconds": self.blocked / self.steps,
            "peak_memory_bytes": peak_memory(),
            **mfu,
        }
        self.metrics.append(line)
        if runtime.first_process():
            print(" ".join(f"{k} {v:.4g}" for k, v in line.items() if v is not None), flush=True)
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def score(self, params: Tree) -> float:
        """Nats that the held-out text costs."""
        args, total = self.args, 0.0
        score = jax.jit(partial(model.loss, self.config))
        windows, weights = dataset.scoring_windows(self.data.validation, args.context)
        for i in range(0, len(windows), args.global_batch):
            rows = slice(i, i + args.global_batch)
            missing = [(0, args.global_batch - len(windows[rows])), (0, 0)]
            parts = [np.pad(part[rows], missing) for part in (windows, weights)]
            # device_put() would compare them among processes, beside a collective that still runs.
            put = (
                jax.make_array_from_callback(x.shape, self.by_batch, x.__getitem__) for x in parts
            )
            total += float(score(params, *put))
            self.watch.begin(args.steps)
        return total

    def finish(self, params: Tree) -> None:
        """Evaluate the trained model and write the results."""
        args, record = self.args, self.data.record
        bits = 1 / math.log(2)
        sample = None
        if record.tokenizer == "bytes":
            text = jax.jit(partial(make_sample, self.config, length=SAMPLE, seed=args.seed))(params)
            sample = bytes(np.asarray(text)).decode(errors="replace")
        validation = self.score(params) * bits / record.validation_bytes
        # The last tenth of training, as one batch is a small sample.
        loss = statistics.mean(x["loss"] for x in self.metrics if x["step"] > 0.9 * args.steps)
        self.note(args.steps)
        training_state.finish(
            self.folder,
            args.out,
            {
                **self.segment.summary(),
                "steps": args.steps,
                "parameters": model.parameter_count(params),
                "flops_per_token": flops.per_token(self.config, args.context),
                "data": record.to_json(),
                "train_bits_per_byte": loss * bits * record.train_tokens / record.train_bytes,
                "validation_bits_per_byte": validation,
                "unigram_bits_per_byte": record.unigram_bits_per_byte,
                "gzip_bits_per_byte": record.gzip_bits_per_byte,
                **{name: self.median(name) for name in ("tokens_per_second", "mfu", "mfu_causal")},
                "sample": sample,
            },
        )

    def median(self, name: str) -> float | None:
        """Median over the lines of metrics; None where it is not known."""
        values = [line[name] for line in self.metrics if line[name] is not None]
        return statistics.median(values) if values else None


def main() -> None:
    """Check what can be checked at once, then train."""
    laps = Laps()
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_argument(parser)
    parser.add_argument(
        "--data-record", type=Path, required=True, help="record that prepare_data wrote (JSON)"
    )
    args = parser.parse_args()
    vars(args).update(presets.resolve(vars(args)))
    check(args)
    with training_state.opened(args) as folder:
        if training_state.finished(folder, args.out):
            return
        # Before JAX 0.5 the first parameters would depend on how they are split.
        jax.config.update("jax_threefry_partitionable", True)
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
        devices = runtime.start(args).devices
        mesh = Mesh(devices.reshape(-1, args.fsdp, args.tensor), model.AXES)
        laps.lap("devices")
        with measure.memory_for(f"this training ({ADVICE})"):
            Training(args, folder, mesh, laps).run()


def check(args: argparse.Namespace) -> None:
    """End the program if sizes do not fit together."""
    for option, expected in training_rules.violations(vars(args), args.devices):
        runtime.fail(f"{option} must be {expected}, not {getattr(args, option)}")


if __name__ == "__main__":
    main()
