"""Parts of gpu.py that are no program of the project: each writes rows of its table."""

import argparse
import dataclasses
import functools
import gzip
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow/scripts"
Row = tuple[str, str, str]  # what, result, and what to compare it with
TRACED_STEPS = 3

# -------------------------------------------------------------------------------------- correctness

# Largest relative errors, as norms. bfloat16 rounds by up to 2**-8 = 0.4 %, 0.17 % as a norm;
# attention rounds three or four times on the way to a result, each layer of a model some ten times.
ATTENTION_TOLERANCE, GRADIENT_TOLERANCE, LOSS_TOLERANCE = 0.01, 0.05, 0.002


def correctness(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """Attention, loss and gradients in bfloat16, against the same functions in float64."""
    import jax
    import numpy as np
    from jax.sharding import Mesh
    from jaxway_job import model

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), model.AXES)
    large = args.platform != "cpu"
    layers, width, T, vocabulary = (4, 768, 1024, 50304) if large else (1, 64, 32, 256)
    errors: list[tuple[str, float, float]] = []
    # Embeddings of a small vocabulary are looked up in another way.
    for K, V in ((64, vocabulary), (128, 256)) if large else ((32, vocabulary),):
        half = model.Config(layers, width, width // K, V, dtype="bfloat16", mesh=mesh, unroll=large)
        exact = dataclasses.replace(half, dtype="float64", unroll=False)
        name = f"heads of {K}"
        for what, error in attention_errors(half, exact, (2, T, width // K, K)).items():
            errors.append((f"attention, {name}: {what}", error, ATTENTION_TOLERANCE))
        for what, error in model_errors(half, exact, T).items():
            tolerance = LOSS_TOLERANCE if what == "loss" else GRADIENT_TOLERANCE
            errors.append((f"model, {name}: {what}", error, tolerance))
    passed = all(error <= tolerance for _, error, tolerance in errors)  # not of NaN
    return [(what, f"error {e:.2%}", f"at most {t:.2%}") for what, e, t in errors], passed


def distance(found: Any, exact: Any) -> float:
    """Relative error of an array, as a norm."""
    import numpy as np

    a, b = (np.asarray(x).astype(np.float64) for x in (found, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def in_float64(call: Callable[[], Any]) -> Any:
    """What ``call`` returns where JAX has float64."""
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        return jax.block_until_ready(call())
    finally:
        jax.config.update("jax_enable_x64", False)


def attention_errors(half: Any, exact: Any, shape: tuple[int, ...]) -> dict[str, float]:
    """Errors of attention's result and gradients, for operands that both types hold exactly."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jaxway_job import model

    draw = np.random.default_rng(0).standard_normal
    operands = [jnp.asarray(draw(shape), jnp.bfloat16) for _ in range(4)]

    def results(config: Any, *operands: Any) -> Any:
        *qkv, g = (x.astype(config.dtype) for x in operands)
        out, back = jax.vjp(functools.partial(model.sdpa, config), *qkv)
        return out, *back(g)

    # Operands, not constants: XLA would compute with those on the CPU, for minutes.
    found = jax.jit(functools.partial(results, half))(*operands)
    expected = in_float64(lambda: jax.jit(functools.partial(results, exact))(*operands))
    names = ("result", "gradient of q", "gradient of k", "gradient of v")
    return {name: distance(*pair) for name, *pair in zip(names, found, expected, strict=True)}


def model_errors(half: Any, exact: Any, context: int) -> dict[str, float]:
    """Errors of a model's loss, and the worst of its gradients."""
    import jax
    import numpy as np
    from jaxway_job import cross_entropy, model

    leaves, tree = jax.tree.flatten(jax.jit(functools.partial(model.init, half))(jax.random.key(0)))
    draw = np.random.default_rng(0)
    # Some start at zero, which would switch their layers off.
    noise = (0.02 * draw.standard_normal(x.shape, np.float32) for x in leaves)
    params = jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise, strict=True)])
    tokens = draw.integers(0, half.vocabulary, (2, context + 1)).astype(np.int32)

    def gradient(config: Any) -> Any:
        return jax.jit(jax.value_and_grad(functools.partial(cross_entropy.loss, config)))

    loss, found = gradient(half)(params, tokens)
    exact_loss, expected = in_float64(lambda: gradient(exact)(params, tokens))
    worst = jax.tree.reduce(max, jax.tree.map(distance, found, expected))
    return {"loss": abs(float(loss) / float(exact_loss) - 1), "worst gradient": worst}


# --------------------------------------------------------------------------------------- resumption


def resumption(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """A training that is killed and resumed, against one that is not: equal to the last bit?"""
    folder = args.scratch / "resumption"
    record = prepare_text(folder, 256)
    sizes, steps = "--layers=4 --width=512 --heads=8 --context=512 --global-batch=16", 1000
    if args.platform == "cpu":
        sizes, steps = "--layers=1 --width=32 --heads=2 --context=32", 300
    words = [sys.executable, SCRIPTS / "train.py", f"--platform={args.platform}", *sizes.split()]
    words += [f"--data-record={record}", f"--steps={steps}", "--ngram=1", "--log-every=1"]
    words += ["--checkpoint-minutes=0.005", "--no-unroll"]

    def start(name: str) -> subprocess.Popen[bytes]:
        out = folder / name / "out/summary.json"
        return subprocess.Popen([*words, f"--state={folder / name / 'state'}", f"--out={out}"])

    if start("whole").wait():
        return [("training", "-", "failed, see the log")], False
    killed, saved = start("killed"), folder / "killed/state/last_checkpoint_step"
    while killed.poll() is None and not (saved.exists() and int(saved.read_text()) > 1):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    step = int(saved.read_text()) if killed.wait() == -signal.SIGKILL else steps
    if step == steps:
        return [("training", "-", "it ended before it could be killed")], False
    if start("killed").wait():
        return [("resumed training", "-", "failed, see the log")], False
    one, other = (final_bits(folder / name) for name in ("whole", "killed"))
    differ = [name for name in one if one[name] != other.get(name)]
    result = "differ: " + ", ".join(differ[:5]) if differ else "equal to the last bit"
    compared = f"{len(one)} arrays and lines of metrics"
    return [(f"killed after step {step} of {steps}", result, compared)], not differ


def prepare_text(folder: Path, vocabulary: int) -> Path:
    """Prepared data: the bytes of this repository's documents."""
    import numpy as np
    from jaxway_shared import data_record

    text = b"".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    tokens = np.frombuffer(text, np.uint8).astype(np.uint8 if vocabulary == 256 else "<u2")
    train, held_out = tokens[:-16384], tokens[-16384:]
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / data_record.shard(0)).write_bytes(train.tobytes())
    (data / data_record.VALIDATION).write_bytes(held_out.tobytes())
    numbers = {"shards": (len(train),), "train_tokens": len(train), "train_bytes": len(train)}
    held = {"validation_tokens": len(held_out), "validation_bytes": len(held_out)}
    scores = {"unigram_bits_per_byte": 8.0, "gzip_bits_per_byte": 8.0}  # not compared with
    record = data_record.DataRecord(
        documents=1, tokenizer="raw", tokenizer_sha256=None,
        vocabulary=vocabulary, dtype=str(tokens.dtype),
        end_of_text=None, sources={"": 1}, header_bytes=0,
        special_tokens=0, unknown_tokens=0, lossless=True, sha256="0" * 64, folder=str(data),
        **numbers, **held, **scores,
    )  # fmt: skip
    path = data / data_record.RECORD
    path.write_text(json.dumps(record.to_json()))
    return path


def final_bits(folder: Path) -> dict[str, Any]:
    """All that a training came to: losses and gradient norms, and the bits of its last arrays."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    newest = max((folder / "state/checkpoints").iterdir(), key=lambda path: int(path.name))
    tree = ocp.StandardCheckpointer().restore(newest.absolute() / "default")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}
    for line in (folder / "out/metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found[f"step {values['step']}"] = values["loss"], values["gradient_norm"]
    return found


# ------------------------------------------------------------------------------------------ trainer


def trainer(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """train.py itself, with metrics, validation, checkpoints and a trace: how fast, and why."""
    sys.path.append(str(ROOT / "workflow"))
    from jaxway.report.trace import step_time
    from jaxway_shared import training

    folder, large = args.scratch / "training", args.platform != "cpu"
    words: list[Any] = [sys.executable, SCRIPTS / "train.py", f"--platform={args.platform}"]
    words += [f"--data-record={prepare_text(folder, 50304 if large else 256)}"]
    words += [f"--preset={args.preset}", f"--global-batch={args.batch}", "--ngram=1"]
    profile = json.dumps({"first": 31, "steps": TRACED_STEPS})
    words += ["--steps=120", "--validate-every=60", f"--profile={profile}"]
    state = folder / "state"
    done = subprocess.run([*words, f"--state={state}", f"--out={folder}/summary.json"], check=False)
    if done.returncode:
        return [("training", "-", "failed, see the log")], False
    rows: list[Row] = []
    lines = [line.numbers for line in training.read_metrics(state / training.METRICS)]
    for name in ("tokens_per_second", "data_seconds", "checkpoint_seconds", "mfu"):
        values = sorted(line[name] for line in lines if name in line)
        if values:
            between = f"{values[0]:.4g} to {values[-1]:.4g} in {len(values)} lines of metrics"
            rows.append((name, f"{statistics.median(values):.4g}", between))
    (job,) = json.loads((state / training.SEGMENTS).read_text())["segments"]
    job.pop("provenance")
    rows += [(f"job: {name}", json.dumps(value), "") for name, value in job.items()]
    found = step_time(state, TRACED_STEPS)
    if found:
        parts = f"compute {found.compute:.2f}, idle {found.idle:.2f}"
        rows.append(("a traced step", f"{found.milliseconds:.2f} ms", parts))
        rows += [(f"traced: {name}", f"{ms:.3f} ms", "") for name, ms in found.operations]
    return rows, bool(found)


# ------------------------------------------------------------------------------------------ PyTorch


def pytorch(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """Matrix products in bfloat16 and a copy on the device, by PyTorch."""
    try:
        import torch
    except ImportError:
        return [("PyTorch", "-", "not installed")], True
    device = "cuda" if args.platform == "cuda" else "cpu"

    def seconds(call: Callable[[], Any]) -> float:
        """Median of 20 samples, each of as many queued calls as last 20 ms."""

        def sample(calls: int) -> float:
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            if device == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - begin) / calls

        sample(3)
        calls = math.ceil(0.02 / sample(1))
        return sorted(sample(calls) for _ in range(20))[10]

    rows: list[Row] = []
    for shape in args.shapes:
        m, n, k = map(int, shape.split("x"))
        a, b = (torch.randn(s, dtype=torch.bfloat16, device=device) for s in ((m, k), (k, n)))
        out = torch.empty((m, n), dtype=torch.bfloat16, device=device)
        time_s = seconds(functools.partial(torch.matmul, a, b, out=out))
        rows.append((f"bfloat16 {shape}", f"{2e-12 * m * n * k / time_s:.4g} TFLOP/s", ""))
    source = torch.randn(args.megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    time_s = seconds(lambda: target.copy_(source))
    rows.append(("copy", f"{2e-9 * 4 * source.numel() / time_s:.4g} GB/s", ""))
    return rows, True


# -------------------------------------------------------------------------------------------- trace

KERNELS = 25


def trace(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """The kernels that take most of a training step, by JAX's profiler."""
    import benchmark_train
    import jax
    from jaxway_job import measure

    folder = args.out.parent / "trace"
    collect_samples = measure.collect_samples

    def traced(call: Callable[[], Any], options: Any, devices: Any = ()) -> measure.Samples:
        jax.block_until_ready(call())
        with jax.profiler.trace(str(folder)):
            for _ in range(TRACED_STEPS):
                out = call()
            jax.block_until_ready(out)
        return collect_samples(call, options, devices)

    measure.collect_samples = traced
    sys.argv = [
        "benchmark_train.py", f"--platform={args.platform}", f"--presets={args.preset}",
        f"--batch-per-device={args.batch}", "--repeats=2", f"--out={folder}.json",
    ]  # fmt: skip
    benchmark_train.main()
    microseconds = kernel_times(max(folder.rglob("*.trace.json.gz"), key=os.path.getmtime))
    total = sum(microseconds.values())
    rows = [("all kernels", f"{total / TRACED_STEPS / 1e3:.2f} ms a step", "")]
    for name, time_us in microseconds.most_common(KERNELS):
        rows.append((name, f"{time_us / TRACED_STEPS / 1e3:.3f} ms", f"{time_us / total:.1%}"))
    return rows, bool(total)


def kernel_times(file: Path) -> Counter[str]:
    """Microseconds of each kernel in a profiler's trace: what ran on a GPU's streams or, where
    there is none, what came from an operation of the compiled program."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"
    }
    on_stream, of_operation = Counter[str](), Counter[str]()
    for event in (e for e in events if e.get("ph") == "X"):
        thread = threads.get((event["pid"], event["tid"]), "")
        operation = event.get("args", {}).get("hlo_op")
        if "GPU" in processes.get(event["pid"], "") and thread.startswith("Stream"):
            on_stream[f"{operation}: {event['name']}"[:100]] += event["dur"]
        elif operation:
            of_operation[operation] += event["dur"]
    return on_stream or of_operation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part", choices=("correctness", "resumption", "trainer", "pytorch", "trace")
    )
    parser.add_argument("--platform", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--megabytes", type=int)
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--preset")
    parser.add_argument("--batch", type=int)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = args.platform
    rows, passed = globals()[args.part](args)
    args.out.write_text(json.dumps({"passed": passed, "rows": rows}))
    for row in rows:
        print("; ".join(row), flush=True)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
