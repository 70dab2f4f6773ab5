"""Write the report: one HTML file with everything that a run of the workflow found out.

Runs on the host and reads only result files (docs/output.md). The page needs nothing else: its
plots are inline SVG, coloured by the page's CSS variables, so that they follow light and dark.
"""

import argparse
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Result = dict[str, Any]
NEEDED = {  # fields of each kind of result
    "smoke_test": "provenance passed checks versions",
    "train": "provenance steps parameters flops_per_token data train_bits_per_byte seconds sample "
    "validation_bits_per_byte unigram_bits_per_byte gzip_bits_per_byte tokens_per_second segments "
    "mfu mfu_causal",
    "program": "provenance program steps seconds segments",  # a training that is not ours
    "benchmark": "provenance benchmark quantity unit higher_is_better formula check samples median "
    "min max iqr",
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
ROWS = 20  # entries of a benchmark group that get a row each in its plot
PLOTS = 20  # benchmark groups that get a plot
POINTS = 500  # of a curve, or of a benchmark's samples; the page is 700 pixels wide
WIDTH = 640  # of a plot, in its own pixels

# Colours of a plot stand for CSS variables, which svg() puts in their place.
PAGE, INK, MUTED, GRID, GREY = "#060101", "#060102", "#060103", "#060104", "#060105"
SERIES = [f"#0600{n:02}" for n in range(1, 7)]
CSS = {PAGE: "page", INK: "ink", MUTED: "muted", GRID: "grid", GREY: "grey"}
CSS |= {colour: f"c{n}" for n, colour in enumerate(SERIES, 1)}
STYLE: Any = {"svg.fonttype": "none", "path.simplify": False, "text.parse_math": False}


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
    if kind == "train" and isinstance(result, dict) and "program" in result:
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


def number(value: Any, like: float | None = None) -> str:
    """A number with 4 significant digits, or with as many decimals as ``like`` has then."""
    if not isinstance(value, (int, float)):
        return "\N{EM DASH}"
    size = math.floor(math.log10(abs(like or value) or 1))
    if isinstance(value, int) or not value:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.2e}" if size < -3 else f"{value:,.{max(0, 3 - size)}f}"
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


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


def axes(height: int, left: int, right: int, top: int, xlabel: str) -> Axes:
    """Axes in a new figure, with just a line at the bottom; sizes are those of the margins."""
    box = (left / WIDTH, 44 / height, 1 - (left + right) / WIDTH, 1 - (top + 44) / height)
    ax = Figure(figsize=(WIDTH / 72, height / 72)).add_axes(box)
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(labelcolor=MUTED, bottom=False, left=False, pad=8)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}".replace(",", "\u202f")))
    ax.set_xlabel(xlabel, loc="right", color=MUTED, labelpad=2)
    return ax


def strokes(ax: Axes, x: Any, y: Any, x_end: Any, y_end: Any, cap: Any = "butt", **style: Any):
    """Lines from each (x, y) to its (x_end, y_end), as one small path."""
    x, y, x_end, y_end, gap = np.broadcast_arrays(x, y, x_end, y_end, np.nan)
    points = (np.ravel([x, x_end, gap], "F"), np.ravel([y, y_end, gap], "F"))
    ax.plot(*points, clip_on=False, solid_capstyle=cap, **style)


def svg(ax: Axes, label: str) -> Markup:
    """The figure as an element of the page, without ids, fonts, namespaces or a fixed size."""
    file = io.StringIO()
    ax.get_figure(root=True).savefig(file, format="svg", transparent=True)  # type: ignore[union-attr]
    text = re.sub(
        r"<metadata>.*?</metadata>|<defs>.*?</defs>", "", file.getvalue(), flags=re.DOTALL
    )
    text = re.sub(
        r' (id|clip-path)="[^"]*"| font-family: [^;"]*;?| transform="rotate\(-0[^"]*"', "", text
    )
    text = re.sub("#060[01]0[1-6]", lambda m: f"var(--{CSS[m[0]]})", re.sub(r"\s+", " ", text))
    box, body = re.findall(r'<svg [^>]*(viewBox="[^"]*")[^>]*>(.*)', text)[0]
    return Markup(f'<svg {box} role="img" aria-label="{escape(label)}">{body}')


def loss_plot(runs: Sequence[Result]) -> Markup:
    """Loss over steps, final validations as points, and the baselines if all runs share them."""
    ax = axes(340, left=30, right=128, top=28, xlabel="step")
    best, last = runs[0], max(run["steps"] for run in runs)
    for run in reversed(runs):  # the best on top
        x, y = run["steps"], run["validation_bits_per_byte"]
        ax.plot(*run["curve"], color=run["colour"], linewidth=1.8, clip_on=False)
        for colour, width in ((PAGE, 13), (run["colour"], 9)):  # a point with a halo
            strokes(ax, [x], [y], [x], [y], cap="round", color=colour, linewidth=width, zorder=3)
    labels = [(best["validation_bits_per_byte"], "best" if len(runs) > 1 else "model", INK)]
    for field, name in BASELINES.items():
        if len({run[field] for run in runs}) == 1:
            labels.append((best[field], name, MUTED))
            ax.axhline(
                best[field], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, clip_on=False
            )
    # From 0 to the 8 bits that a byte has, or to whatever is higher.
    height = 1.02 * max(8, *(y for y, *_ in labels), *(max(run["curve"][1]) for run in runs))
    ax.set(xlim=(0, last), ylim=(0, height))
    ax.grid(axis="y", color=GRID)
    ax.text(-0.06, 1.05, "bits per byte", color=MUTED, transform=ax.transAxes)
    floor, margin = 0.0, ax.get_yaxis_transform()
    for y, name, colour in sorted(labels):  # pushed apart where they would overlap
        floor = max(y, floor)
        ax.text(1.03, floor, f"{name} {y:.3f}", color=colour, va="center", transform=margin)
        floor += 0.085 * height
    finals = ", ".join(f"{name} {y:.3f}" for y, name, _ in labels)
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


def bars(entries: Sequence[Result], unit: str) -> Axes:
    """A row for each entry: bar to the median, line from minimum to maximum, stroke per sample."""
    height, widest = 46 * len(entries), 1.02 * max(entry["max"] for entry in entries)
    ax = axes(height + 48, left=4, right=12, top=4, xlabel=unit)
    ax.set(xlim=(0, widest), ylim=(height, 0), yticks=[])
    ax.grid(axis="x", color=GRID)
    for row, entry in enumerate(entries):
        y, name, median = 46 * row + 28, entry["name"], entry["median"]
        count = min(POINTS, len(entry["samples"]))
        samples = np.quantile(entry["samples"], np.linspace(0, 1, count))
        ax.text(0, y - 10, name if len(name) < 45 else name[:42] + "…", color=INK)
        ax.text(widest, y - 10, f"{number(median)} {unit}", color=INK, ha="right")
        strokes(ax, [0], [y], [median], [y], color=SERIES[0], linewidth=12, alpha=0.35)
        strokes(ax, [median], [y - 6], [median], [y + 6], color=SERIES[0], linewidth=4)
        strokes(ax, [entry["min"]], [y], [entry["max"]], [y], color=INK, linewidth=1)
        strokes(ax, samples, y - 4, samples, y + 4, color=INK, linewidth=1)
    return ax


def ranks(entries: Sequence[Result], unit: str) -> Axes:
    """Many entries in one small plot: median and range of each, from best to worst."""
    ax = axes(280, left=60, right=12, top=28, xlabel="rank")
    low, median, high = ([entry[key] for entry in entries] for key in ("min", "median", "max"))
    x = np.arange(1, len(entries) + 1)
    strokes(ax, x, low, x, high, color=GREY, linewidth=min(6, 400 / len(entries)))
    ax.plot(x, median, color=SERIES[0], linewidth=1.8, drawstyle="steps-mid", clip_on=False)
    ax.set(xlim=(0.5, len(entries) + 0.5), ylim=(0, 1.02 * max(high)))
    ax.grid(axis="y", color=GRID)
    ax.text(-0.1, 1.05, unit, color=MUTED, transform=ax.transAxes)
    return ax


def benchmark_groups(results: Sequence[Result]) -> list[Result]:
    """Results of the same benchmark, quantity and unit belong together."""
    together: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        devices = result.get("median_per_device", [])
        slowest = 100 - 100 * min(devices) / float(np.median(devices)) if len(devices) > 1 else None
        result["slowest"] = slowest and f"\N{MINUS SIGN}{slowest:.1f}\N{NARROW NO-BREAK SPACE}%"
        key = (result["benchmark"], result["quantity"], result["unit"])
        together.setdefault(key, []).append(result)
    groups: list[Result] = []
    for (benchmark, quantity, unit), entries in together.items():
        higher, many = entries[0]["higher_is_better"], len(entries) > ROWS
        order = sorted(entries, key=lambda entry: entry["median"], reverse=higher)
        group: Result = {"benchmark": benchmark, "quantity": quantity, "unit": unit, "many": many}
        group |= {"entries": order if many else entries, "best": order[0], "worst": order[-1]}
        label = some(f"{entry['name']} {number(entry['median'])} {unit}" for entry in order)
        draw = ranks if many else bars
        plot = len(groups) < PLOTS and svg(draw(group["entries"], unit), f"{quantity}: {label}")
        groups.append(group | {"plot": plot})
    return groups


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


def page(smoke_test: Result, trainings: list[Result], benchmarks: list[Result]) -> str:
    """The HTML page."""
    programs = [run for run in trainings if "program" in run]
    runs = [run for run in trainings if "program" not in run]
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
    results += [(result["name"], result["provenance"]) for result in benchmarks]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "report"),
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
        groups=benchmark_groups(benchmarks),
        benchmarks=len(benchmarks),
        origin=origins(results) if results else None,
    )


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write (HTML)")
    parser.add_argument("--smoke-test", type=Path, required=True, help="its result")
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="summaries of trainings")
    parser.add_argument("--benchmark", type=Path, nargs="*", default=[], help="their results")
    args = parser.parse_args()

    smoke_test = load(args.smoke_test, "smoke_test")
    runs = [load(path, "train") for path in args.train]
    for run, path in zip(runs, args.train, strict=True):
        if "program" not in run:
            run["curve"] = load_curve(path.with_name("metrics.jsonl"), run["data"])
    benchmarks = [load(path, "benchmark") for path in args.benchmark]
    with rc_context(STYLE | {"font.size": 13}):
        text = page(smoke_test, runs, benchmarks)
    part = args.out.with_name(args.out.name + ".part")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(args.out)
    except OSError as error:
        fail(f"{args.out} cannot be written: {error.strerror}")


if __name__ == "__main__":
    main()
