"""Write the report: one HTML file with everything that a run of the workflow found out.

Runs on the host and reads only result files (docs/output.md). The page needs nothing else: its
plots are inline SVG, coloured by the page's CSS variables, so that they follow light and dark.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
import yaml
from markupsafe import Markup
from matplotlib import rc_context

from jaxway.report import benchmarks as tables
from jaxway.report.plots import (
    CSS,
    GREY,
    INK,
    MUTED,
    PAGE,
    POINTS,
    SERIES,
    STYLE,
    axes,
    labels,
    number,
    strokes,
    svg,
)

Result = dict[str, Any]
NEEDED = {  # fields of each kind of result
    "smoke_test": "provenance passed checks versions",
    "train": "provenance steps parameters flops_per_token data train_bits_per_byte seconds sample "
    "validation_bits_per_byte unigram_bits_per_byte gzip_bits_per_byte tokens_per_second segments "
    "mfu mfu_causal",
    "program": "provenance program steps seconds segments",  # a training that is not ours
    "benchmark": "allocation benchmarks",
    "vetting": "nodes values exclude",
    "cost": "cores_per_node jobs problem",
}
PLUMBING = {
    "data_record",
    "out",
    "state",
    "devices",
    "platform",
    "container_record",
    "image",
    "host_suffix",
}  # arguments
BASELINES = {"unigram_bits_per_byte": "unigram", "gzip_bits_per_byte": "gzip \N{MINUS SIGN}9"}
MUST_AGREE = {  # parts of a provenance, and how to call several
    "image digest": "images",
    "SIF sha256": "SIF files",
    "commit": "commits",
    "JAX": "versions of JAX",
    "driver": "drivers",
    "device": "kinds of device",
}


def fail(sentence: str) -> NoReturn:
    """End the program with exit code 1 and one sentence on standard error."""
    sys.exit(f"report: {sentence}")


def load(path: Path, kind: str) -> Result:
    """A result file, with its name. Ends the program when it is missing or damaged."""
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        fail(f"{path} is missing: run snakemake again, which makes it")
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}): check its permissions")
    except ValueError as error:
        fail(f"{path} is no valid JSON ({error}): delete it and run snakemake again")
    if kind == "train" and isinstance(result, dict) and result.get("program") != "train":
        kind = "program"
    for field in NEEDED[kind].split():
        if not isinstance(result, dict) or field not in result:
            fail(f"{path} has no field {field}: delete it and run snakemake again")
    return result | {"name": path.parent.name if path.stem == "summary" else path.stem}


def load_curve(path: Path, data: Result) -> np.ndarray:
    """Steps and losses, in bits per byte, that a training on ``data`` logged, 2 x n: means over
    equal parts if they are many."""
    try:
        lines = map(json.loads, path.read_text().splitlines())
        points = np.array([(line["step"], line["loss"]) for line in lines], float).reshape(-1, 2)
        if not len(points):
            raise ValueError("no step")
    except FileNotFoundError:
        fail(f"{path} is missing: delete summary.json beside it and run snakemake again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} is damaged ({error!r}): delete it and run snakemake again")
    points[:, 1] *= data["train_tokens"] / data["train_bytes"] / math.log(2)
    parts = np.array_split(points, POINTS) if len(points) > POINTS else points[:, None]
    return np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2).T


def mega(count: float) -> str:
    """A number of bytes."""
    power = min(3, int(math.log10(max(1, count)) / 3))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def some(values: Iterable[Any]) -> str:
    """The first few of the different values, and how many more there are."""
    different = list(dict.fromkeys(str(value) for value in values if value is not None))
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(different[:3]) + more


def printable(text: str) -> str:
    """``text`` without the control, direction and surrogate characters that a page cannot hold."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def loss_plot(runs: Sequence[Result]) -> Markup:
    """Loss over steps, final validations as points, and the baselines if all runs share them."""
    ax = axes(340, left=30, right=128, top=28, xlabel="step", ylabel="bits per byte")
    best, last = runs[0], max(run["steps"] for run in runs)
    for run in reversed(runs):  # the best on top
        x, y = run["steps"], run["validation_bits_per_byte"]
        ax.plot(*run["curve"], color=run["colour"], linewidth=1.8, clip_on=False)
        for colour, width in ((PAGE, 13), (run["colour"], 9)):  # a point with a halo
            strokes(ax, [x], [y], [x], [y], cap="round", color=colour, linewidth=width, zorder=3)
    ends = [(best["validation_bits_per_byte"], "best" if len(runs) > 1 else "model", INK)]
    for field, name in BASELINES.items():
        if len({run[field] for run in runs}) == 1:
            ends.append((best[field], name, MUTED))
            ax.axhline(
                best[field], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, clip_on=False
            )
    # From 0 to the 8 bits that a byte has, or to whatever is higher.
    height = 1.02 * max(8, *(y for y, *_ in ends), *(max(run["curve"][1]) for run in runs))
    ax.set(xlim=(0, last), ylim=(0, height))
    labels(ax, [(y, f"{name} {y:.3f}", colour) for y, name, colour in ends])
    finals = ", ".join(f"{name} {y:.3f}" for y, name, _ in ends)
    return svg(ax, f"Training loss over {last} steps, in bits per byte; at the end: {finals}.")


def verdict(run: Result) -> str:
    """Does the model beat gzip, by how much, and if not, why?"""
    model, gzip, train = (run[f"{k}_bits_per_byte"] for k in ("validation", "gzip", "train"))
    length, seen = run["data"]["train_bytes"], run["seen"]
    share = f"{abs(model / gzip - 1):.1%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")
    text = f"{model:.3f} bits for each byte of unseen text, where gzip needs {gzip:.3f}"
    if model < gzip:
        return f"The model beats gzip by {share}: it needs {text}."
    if model > run["unigram_bits_per_byte"]:
        why = "It does worse than the mere frequencies of bytes: try a lower learning rate."
    elif seen < length:
        steps = f"{mega(seen)} in {number(run['steps'])} steps, of {mega(length)}"
        why = f"It has seen too little text: {steps}. Raise steps or global_batch."
    elif model > 1.05 * train:
        why = f"It knows the text that it was trained on better ({train:.3f}): give it more data."
    else:
        why = f"It saw {mega(length)} {seen / length:.1f} times: raise layers, width or steps."
    return f"The model does not beat gzip: it needs {text}, so {share} more. {why}"


def identity(provenance: Result) -> Result:
    """What a result depends on besides its arguments."""
    container = provenance["container"] or {"image": "no container"}
    parts = {"image": "image", "image digest": "digest", "SIF sha256": "sha256"}
    result: Result = {name: container.get(key) for name, key in parts.items()}
    result |= {"commit": provenance["commit"], "site": Path(provenance["site"] or "unknown").name}
    result |= {"nodes": provenance["nodes"], "device": provenance["device_kind"]}
    result |= {"JAX": provenance["jax"]}
    return result | {k: provenance[k] for k in ("jaxlib", "numpy", "python", "backend", "driver")}


def origins(results: Sequence[tuple[str, Result]]) -> Result:
    """What the results (name, provenance) have in common, what differs, and what to beware of."""
    members: dict[tuple, list[tuple[str, Result]]] = {}
    for name, provenance in results:
        members.setdefault(tuple(identity(provenance).values()), []).append((name, provenance))
    keys = list(identity(results[0][1]))
    columns = {key: [row[i] for row in members] for i, key in enumerate(keys)}
    different = {key: len(set(values)) for key, values in columns.items()}
    different["device"] = len(set(columns["device"]) - {None})  # a command's is not known
    rows = [
        dict(zip(keys, row, strict=True))
        | {"results": some(n for n, _ in group), "jobs": some(p["job"] for _, p in group)}
        for row, group in members.items()
    ]
    warnings = []
    if mixed := [f"{different[k]} {text}" for k, text in MUST_AGREE.items() if different[k] > 1]:
        several = " and ".join([", ".join(mixed[:-1]), mixed[-1]] if mixed[1:] else mixed)
        warnings.append(f"The results do not belong together: they come from {several}.")
    if any(commit and commit.endswith("-dirty") for commit in columns["commit"]):
        warnings.append("Some code had uncommitted changes, which nobody can have again.")
    if {None, "unknown"} & set(columns["commit"]):
        warnings.append("Some of the code's commits are not known.")
    times = sorted(provenance["time"] for _, provenance in results)
    return {
        "warnings": warnings,
        "node_sets": different["nodes"],
        "known": {key: some(values) for key, values in columns.items()},
        "common": {key: columns[key][0] for key in keys if different[key] == 1},
        "differing": [key for key in keys if different[key] > 1],
        "rows": rows,
        "first": times[0],
        "last": times[-1],
    }


def page(
    smoke_test: Result,
    trainings: list[Result],
    benchmarks: list[Result],
    site: Result,
    history: Path,
    vetting: Result | None,
    cost: Result | None,
) -> str:
    """The HTML page."""
    programs = [run for run in trainings if run["program"] != "train"]
    runs = [run for run in trainings if run["program"] == "train"]
    runs = sorted(runs, key=lambda run: run["validation_bits_per_byte"])
    for rank, run in enumerate(runs):
        arguments = run["provenance"]["arguments"]
        tokens = run["steps"] * arguments["global_batch"] * arguments["context"]
        run["seen"] = tokens * run["data"]["train_bytes"] / run["data"]["train_tokens"]
        run["settings"] = {k: v for k, v in arguments.items() if k not in PLUMBING}
        run["colour"] = SERIES[rank] if rank < len(SERIES) else GREY
        run["css"], run["verdict"], run["plot"] = CSS[run["colour"]], verdict(run), loss_plot([run])
    results = [("smoke test", smoke_test["provenance"])] if smoke_test["provenance"] else []
    results += [(run["name"], part["provenance"]) for run in trainings for part in run["segments"]]
    results += [
        (f"{benchmark['name']} on {result['name']}", benchmark["provenance"])
        for result in benchmarks
        for benchmark in result["benchmarks"]
        if benchmark.get("provenance")
    ]
    entries = tables.entries_of(site, benchmarks)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[2] / "report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "mega": mega, "printable": printable}
    return environment.get_template("report.html.j2").render(
        smoke_test=smoke_test,
        runs=runs,
        programs=programs,
        overview=loss_plot(runs) if len(runs) > 1 else None,
        benchmarks=sum(len(result["benchmarks"]) for result in benchmarks),
        verdicts=tables.overview(entries),
        groups=tables.grouped(entries),
        scaling=tables.scaling(entries),
        rooflines=tables.rooflines(entries),
        past=tables.past(history, entries),
        nodes=vetting and tables.node_map(vetting),
        cost=cost and tables.costs(cost),
        origin=origins(results) if results else None,
    )


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write (HTML)")
    parser.add_argument("--smoke-test", type=Path, required=True, help="its result")
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="summaries of trainings")
    parser.add_argument(
        "--benchmark", type=Path, nargs="*", default=[], help="allocations' results"
    )
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("--history", type=Path, required=True, help="folder of the history")
    parser.add_argument("--node-check", type=Path, help="what check-nodes found")
    parser.add_argument("--cost", type=Path, help="what Slurm's jobs have used")
    args = parser.parse_args()

    smoke_test = load(args.smoke_test, "smoke_test")
    runs = [load(path, "train") for path in args.train]
    for run, path in zip(runs, args.train, strict=True):
        if "program" not in run:
            run["curve"] = load_curve(path.with_name("metrics.jsonl"), run["data"])
    benchmarks = [load(path, "benchmark") for path in args.benchmark]
    vetting = load(args.node_check, "vetting") if args.node_check else None
    cost = load(args.cost, "cost") if args.cost else None
    site = yaml.safe_load(args.site.read_text())
    with rc_context(STYLE | {"font.size": 13}):
        text = page(smoke_test, runs, benchmarks, site, args.history, vetting, cost)
    part = args.out.with_name(args.out.name + ".part")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(args.out)
    except OSError as error:
        fail(f"{args.out} cannot be written: {error.strerror}")
