"""All that is worth knowing of one GPU, in minutes: is it right, how fast, what makes it faster.

    python3 benchmarks/gpu.py --minutes 9 --out DIR

Needs JAX with optax, orbax and numpy; with PyTorch, matrix products and copies are compared with
its. The parts run one after the other, each in a process of its own that is ended at its limit;
one that fails does not stop the rest. After each, DIR has all results so far: gpu.json, its table
gpu.md, and gpu.log; results of an earlier run are not overwritten. ``--only arm base`` runs those
that begin with one of these words. ``--platform cpu`` tries everything with tiny sizes.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow/scripts"
GIB = 2**30
END_S = 5  # for the last results and the table
SCHEMA_VERSION = 1
BASE, PYTORCH = "base", "PyTorch, for comparison"
CARD = "--query-gpu=name,driver_version,memory.total,memory.used"

Row = tuple[str, str, str]  # what, result, and what to compare it with


class Sizes(NamedTuple):
    """What fits a kind of device."""

    models: dict[str, int]  # sequences of each preset
    heads: int  # half the first preset's, twice as wide
    quick: tuple[str, ...]  # options of all benchmarks
    products: tuple[str, ...]  # of benchmark_compute
    dtypes: tuple[str, ...]
    megabytes: int  # of each array of benchmark_memory and the checkpoint


LARGE = Sizes(
    {"124M": 64, "350M": 32, "1.3B": 8},
    *(6, (), ("8192x8192x8192", "16384x8192x2048"), ("bfloat16", "tf32", "float8"), 1024),
)
SMALL = LARGE._replace(models={"124M": 32, "350M": 16, "1.3B": 4})  # 40 GB
CPU = Sizes(
    {"tiny": 2}, 1, ("--warmup=1", "--repeats=2"), ("64x64x64",), ("bfloat16", "float32"), 1
)


@dataclass(frozen=True)
class Part:
    """A program to run. ``need_s``: what earlier parts leave it, if all up to it fit."""

    name: str
    words: Sequence[str | Path]
    need_s: float
    limit_s: float
    rows: Callable[[Any], list[Row]]  # of the table, from its result
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a part. ``result`` is the JSON that its program wrote, also if it failed."""

    name: str
    status: str  # ok, failed, over its limit, no time left
    seconds: float
    command: str
    environment: dict[str, str]
    result: Any
    last_lines: list[str]  # that it printed


# ------------------------------------------------------------------------------------------- rows


def of_smoke_test(result: Any) -> list[Row]:
    checks = result["checks"]
    failed = [
        f"{c['name']}: {c['measured']}, not {c['expected']}" for c in checks if not c["passed"]
    ]
    return [(f"{len(checks)} checks", "; ".join(failed) or "all pass", "")]


def of_rows(result: Any) -> list[Row]:
    return [(row[0], row[1], row[2]) for row in result["rows"]]


def measured(result: Any) -> list[tuple[str, Any]]:
    """Cases of a benchmark that have a measurement."""
    cases = [(" ".join(map(str, c["case"].values())), c["measurement"]) for c in result["cases"]]
    return [(name, measurement) for name, measurement in cases if measurement]


def of_benchmark(result: Any) -> list[Row]:
    rows = []
    for name, found in measured(result):
        low, high = min(found["samples"]), max(found["samples"])
        value = f"{median(found['samples']):.4g} {found['unit']}"
        rows.append((name, value, f"{low:.4g} to {high:.4g} in {len(found['samples'])} samples"))
    for case in result["cases"]:
        if reason := case["failed"] or case["skipped"]:
            rows.append((" ".join(map(str, case["case"].values())), "-", reason))
    return rows


def of_training(result: Any) -> list[Row]:
    rows = of_benchmark(result)
    for name, found in measured(result):
        if found["mfu"]:
            shares = f"{found['mfu']:.1%}", f"{found['mfu_causal']:.1%} counting half of attention"
            rows.append((f"{name}: MFU", *shares))
        memory = found["memory"]
        peak, compiled, limit = (
            f"{memory[x] / GIB:.2f} GiB" if memory[x] else "not known"
            for x in ("peak", "compiled", "limit")
        )
        rows.append((f"{name}: memory", peak, f"{compiled} by the compiler; limit {limit}"))
    return rows


def speed(outcome: Outcome) -> float | None:
    """Median tokens/s of a training benchmark; None, it has none."""
    found = measured(outcome.result) if outcome.result else []
    return median(found[0][1]["samples"]) if found else None


def ratios(outcomes: list[Outcome]) -> list[Row]:
    """Each arm by the mean of the base before and after it."""
    rows: list[Row] = []
    for before, arm, after in zip(outcomes, outcomes[1:], outcomes[2:], strict=False):
        if arm.name.startswith("arm: "):
            bases = [x for x in (speed(o) for o in (before, after) if o.name == BASE) if x]
            if (fast := speed(arm)) and bases:
                ratio = fast / (sum(bases) / len(bases))
                rows.append((arm.name, f"{ratio:.3f} of the base's speed", f"bases: {len(bases)}"))
    return rows


def beside_pytorch(outcomes: list[Outcome]) -> list[Row]:
    """What PyTorch has measured, too, as ratios."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for outcome in outcomes:
        if outcome.name in ("compute", "memory") and outcome.result:
            ours |= {name: median(found["samples"]) for name, found in measured(outcome.result)}
        if outcome.name == PYTORCH and outcome.result:
            values = ((name, value.split()[0]) for name, value, _ in outcome.result["rows"])
            theirs |= {name: float(value) for name, value in values if value != "-"}
    both = [(name, ours[name] / value) for name, value in theirs.items() if name in ours]
    return [(name, f"{ratio:.3f} of PyTorch's speed", "") for name, ratio in both]


# ------------------------------------------------------------------------------------------ parts


def flags(text: str) -> dict[str, str]:
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {text}".strip()}


def training(kind: str, sizes: Sizes, preset: str, rows: int, *more: str) -> tuple[str | Path, ...]:
    """The benchmark of a training with so many sequences."""
    words = (SCRIPTS / "benchmark_train.py", f"--platform={kind}", *sizes.quick)
    return (*words, f"--batch-per-device={rows}", f"--presets={preset}", *more)


def arms(kind: str, sizes: Sizes) -> list[Part]:
    """Changes of the first preset's training, each between two runs of it as it is."""
    first, batch = next(iter(sizes.models.items()))

    def arm(what: str, *more: str, rows: int = batch, **env: str) -> Part:
        words = training(kind, sizes, first, rows, *more)
        return Part(f"arm: {what}", words, 20, 180, of_training, env)

    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    changes = [
        arm("layers in a loop", "--no-unroll"),
        arm(
            "deterministic, layers in a loop", "--no-unroll",
            **flags("--xla_gpu_deterministic_ops=true"),
        ),
        arm("heads twice as wide", f"--heads={sizes.heads}"),
        arm("sums between layers in float32", **flags("--xla_allow_excess_precision=true")),
        arm("0.9 of memory, 2.5 x the batch", rows=5 * batch // 2, **share),
        arm("no Triton products", **flags("--xla_gpu_enable_triton_gemm=false")),
        arm("no command buffers", **flags("--xla_gpu_enable_command_buffer=")),
    ]  # fmt: skip
    base = Part(BASE, training(kind, sizes, first, batch), 10, 180, of_training)
    tried = changes[:1] if kind == "cpu" else changes
    return [base, *(part for change in tried for part in (change, base))]


def parts(kind: str, sizes: Sizes, work: Path) -> list[Part]:
    """All parts, in the order of their worth."""
    scratch = f"--scratch={work}"
    common = (f"--platform={kind}", *sizes.quick)
    own: tuple[str | Path, ...] = (Path(__file__).with_name("gpu_parts.py"), f"--platform={kind}")
    first, batch = next(iter(sizes.models.items()))
    smoke = (SCRIPTS / "smoke_test.py", f"--platform={kind}", scratch)
    compute = (SCRIPTS / "benchmark_compute.py", *common, "--shapes", *sizes.products)
    memory = (SCRIPTS / "benchmark_memory.py", *common, f"--megabytes={sizes.megabytes}")
    io = (SCRIPTS / "benchmark_io.py", *common, scratch, f"--megabytes={sizes.megabytes}")
    torch = (*own, "pytorch", f"--megabytes={sizes.megabytes}", "--shapes", *sizes.products)
    model = f"--preset={first}", f"--batch={batch}"
    no_buffers = flags("--xla_gpu_enable_command_buffer=")  # which hide the names of operations
    # Each training compiles its own step.
    deterministic = flags("--xla_gpu_deterministic_ops=true") | {"JAX_COMPILATION_CACHE_DIR": ""}
    return [
        Part("smoke test", smoke, 20, 120, of_smoke_test),
        Part("correctness", (*own, "correctness"), 50, 120, of_rows),
        Part(
            "resumption after a kill", (*own, "resumption", scratch), 55, 150, of_rows,
            deterministic,
        ),
        *(
            Part(f"training {preset}", training(kind, sizes, preset, rows), 35, 180, of_training)
            for preset, rows in sizes.models.items()
        ),
        Part("trainer", (*own, "trainer", scratch, *model), 55, 90, of_rows),
        Part("compute", (*compute, "--dtypes", *sizes.dtypes), 50, 120, of_benchmark),
        Part("memory", memory, 45, 90, of_benchmark),
        Part("checkpoints", io, 30, 60, of_benchmark),
        Part(PYTORCH, torch, 10, 60, of_rows),
        Part("largest kernels", (*own, "trace", *model), 20, 90, of_rows, no_buffers),
        *arms(kind, sizes),
    ]  # fmt: skip


def run(part: Part, limit_s: float, work: Path, log: Path) -> Outcome:
    """Run a part's program, and end all its processes at the limit."""
    out = work / "result.json"
    out.unlink(missing_ok=True)
    words = [sys.executable, *map(str, part.words), f"--out={out}"]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(work / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": str(SCRIPTS),
    }
    begin = time.monotonic()
    with log.open("ab") as file:
        file.write(f"=== {part.name}\n".encode())
        file.flush()
        start = file.tell()
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        env = {**os.environ, **cache, **part.environment}
        process = subprocess.Popen(words, env=env, start_new_session=True, **streams)
    try:
        status = "ok" if process.wait(limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "over its limit"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it has started, too
        process.wait()
    seconds = time.monotonic() - begin
    try:
        result = json.loads(out.read_text())
    except (OSError, ValueError):
        result = None
    last = log.read_bytes()[start:].decode(errors="replace").splitlines()[-8:]
    return Outcome(part.name, status, seconds, " ".join(words), part.environment, result, last)


# ---------------------------------------------------------------------------------------- results


def output_of(*words: str) -> str | None:
    """What a program prints; None, there is no such program, or it does not end."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def choose_sizes(kind: str, described: str | None) -> Sizes:
    """Sizes that suit the first GPU's memory."""
    if kind == "cpu":
        return CPU
    try:
        mebibytes = float((described or "").splitlines()[0].split(",")[2])
        return LARGE if mebibytes > 60_000 else SMALL
    except (IndexError, ValueError):
        return SMALL


def table(head: dict[str, Any], outcomes: list[Outcome], all_parts: list[Part]) -> str:
    """The results in markdown."""
    rows_of = {part.name: part.rows for part in all_parts}
    device = "; ".join((head["card"] or "no GPU").splitlines())
    lines = [f"{device}, {head['time']}, commit {head['commit']}, Python {head['python']}", ""]
    if head["platform"] == "cpu":
        lines = ["A rehearsal with tiny sizes on a CPU: **not measured on a GPU**.", "", *lines]
    lines += ["| part | | result | to compare with |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        rows: list[Row] = []
        if outcome.result is not None:
            try:
                rows = rows_of[outcome.name](outcome.result)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                rows = [("its result cannot be read", "-", repr(error))]
        if outcome.status != "ok":
            why = outcome.last_lines[-1][:200] if outcome.last_lines else ""
            rows.append((f"after {outcome.seconds:.0f} s", f"**{outcome.status}**", why))
        for row in rows:
            cells = (x.replace("|", "\\|").replace("\n", " ") for x in (outcome.name, *row))
            lines.append(f"| {' | '.join(cells)} |")
    compared = ratios(outcomes) + beside_pytorch(outcomes)
    lines += [f"| compared | {' | '.join(row)} |" for row in compared]
    return "\n".join(lines) + "\n"


def replace_file(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def measure(args: argparse.Namespace, end: float) -> bool:
    """Run all parts until ``end``, and write their results. Whether all have succeeded."""
    described = output_of("nvidia-smi", CARD, "--format=csv,noheader,nounits")
    head = {
        "schema_version": SCHEMA_VERSION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "platform": args.platform,
        "card": described,
    }
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="jaxway-gpu-") as folder:
        work = Path(folder)
        all_parts = parts(args.platform, choose_sizes(args.platform, described), work)
        all_parts = [part for part in all_parts if part.name.startswith(tuple(args.only))]
        if not all_parts:
            sys.exit(f"gpu.py: no part begins with {' or '.join(args.only)}")
        log = args.out / "gpu.log"
        args.out.mkdir(parents=True, exist_ok=True)
        with log.open("x") as file:
            file.write(output_of("nvidia-smi", "-q") or "no nvidia-smi\n")
        sums = list(itertools.accumulate(part.need_s for part in all_parts))
        fitting = sum(seconds <= end - time.monotonic() for seconds in sums)
        for number, part in enumerate(all_parts):
            kept = sum(later.need_s for later in all_parts[number + 1 : fitting])
            # A CPU may have others' work to do, too.
            limit_s = part.limit_s * (10 if args.platform == "cpu" else 1)
            limit_s = min(limit_s, end - time.monotonic() - kept)
            if limit_s >= part.need_s:
                outcome = run(part, limit_s, work, log)
            else:
                outcome = Outcome(part.name, "no time left", 0.0, "", {}, None, [])
            outcomes.append(outcome)
            print(f"{outcome.seconds:6.1f} s  {part.name}: {outcome.status}", flush=True)
            content = {**head, "parts": [asdict(each) for each in outcomes]}
            replace_file(args.out / "gpu.json", json.dumps(content, indent=1) + "\n")
            replace_file(args.out / "gpu.md", table(head, outcomes, all_parts))
    print((args.out / "gpu.md").read_text())
    return all(outcome.status == "ok" for outcome in outcomes)


def main() -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="when the last part has ended")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", nargs="+", default=[""], help="how the parts to run begin")
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()

    def stop(number: int, _: object) -> NoReturn:
        sys.exit(f"gpu.py: ended by {signal.Signals(number).name}; {args.out} has what was found")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # so that no part outlives it
    try:
        sys.exit(not measure(args, begin + 60 * args.minutes - END_S))
    except FileExistsError as error:
        sys.exit(f"gpu.py: {error.filename} is there already: choose another folder for --out")
    except OSError as error:
        sys.exit(f"gpu.py: {error.filename or args.out} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
