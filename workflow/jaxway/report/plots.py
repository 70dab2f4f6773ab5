"""How the report draws: plots as inline SVG, coloured by the page's CSS variables."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import dates as matplotlib_dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

if TYPE_CHECKING:
    from jaxway.report.entries import Entry

MAX_POINTS = 500  # of a curve, or of a benchmark's samples; the page is 700 pixels wide
WIDTH = 640  # of a plot, in its own pixels

# Colours of a plot stand for CSS variables, which svg() puts in their place.
PAGE, INK, MUTED, GRID, GREY = "#060101", "#060102", "#060103", "#060104", "#060105"
SERIES = [f"#0600{n:02}" for n in range(1, 7)]
CSS = {PAGE: "page", INK: "ink", MUTED: "muted", GRID: "grid", GREY: "grey"}
CSS |= {colour: f"c{n}" for n, colour in enumerate(SERIES, 1)}
dates: Any = matplotlib_dates  # without types
STYLE: Any = {"svg.fonttype": "none", "path.simplify": False, "text.parse_math": False}


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


def plain(value: float, _: Any = None) -> str:
    """The number of a tick."""
    return f"{value:,.10g}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def axes(height: int, left: int, right: int, top: int, xlabel: str, ylabel: str = "") -> Axes:
    """Axes in a new figure, with just a line at the bottom; sizes are those of the margins.

    The grid is that of y, whose label stands above it, or without that label of x.
    """
    box = (left / WIDTH, 44 / height, 1 - (left + right) / WIDTH, 1 - (top + 44) / height)
    ax = Figure(figsize=(WIDTH / 72, height / 72)).add_axes(box)
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(labelcolor=MUTED, bottom=False, left=False, pad=8)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(plain))
    ax.set_xlabel(xlabel, loc="right", color=MUTED, labelpad=6)
    ax.grid(axis="y" if ylabel else "x", color=GRID)
    ax.get_figure(root=True).text(4 / WIDTH, 1 - 12 / height, ylabel, color=MUTED)  # type: ignore[union-attr]
    return ax


def labels(ax: Axes, texts: Iterable[tuple[float, str, str]]) -> None:
    """Texts (y, text, colour) at the right, not overlapping. The axes' limits must be set."""
    ordered = sorted(texts)
    gap = 20 / 72 * ax.get_figure(root=True).dpi / ax.bbox.height  # type: ignore[union-attr]
    left = [(ax.get_xlim()[0], y) for y, *_ in ordered]
    heights = list((ax.transScale + ax.transLimits).transform(left)[:, 1])
    for k in range(1, len(heights)):  # up where the one below is too near
        heights[k] = max(heights[k], heights[k - 1] + gap)
    limit = 1.0
    for k in reversed(range(len(heights))):  # and down where that went over the top
        heights[k] = min(heights[k], limit)
        limit = heights[k] - gap
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        ax.text(1.03, height, text, color=colour, va="center", transform=ax.transAxes)


def strokes(
    ax: Axes, x: Any, y: Any, x_end: Any, y_end: Any, cap: Any = "butt", **style: Any
) -> None:
    """Lines from each (x, y) to its (x_end, y_end), as one small path."""
    x, y, x_end, y_end, gap = np.broadcast_arrays(x, y, x_end, y_end, np.nan)
    points = (np.ravel([x, x_end, gap], "F"), np.ravel([y, y_end, gap], "F"))
    ax.plot(*points, clip_on=False, solid_capstyle=cap, **style)


def points(ax: Axes, x: Any, y: Any, colour: str) -> None:
    """A point at each value."""
    strokes(ax, x, y, x, y, cap="round", color=colour, linewidth=7)


def line(ax: Axes, x: Any, y: Any, colour: str) -> None:
    """A line with a point at each value."""
    ax.plot(x, y, color=colour, linewidth=1.8, clip_on=False)
    points(ax, x, y, colour)


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


def bars(entries: Sequence["Entry"], unit: str) -> Axes:
    """A row for each entry: bar to the median, line from minimum to maximum, stroke per sample, and
    below it the range of its reference."""
    height = 46 * len(entries)
    widest = 1.02 * max(x for e in entries for x in (e.value.max, *(e.range or ())))
    ax = axes(height + 48, left=4, right=12, top=4, xlabel=unit)
    ax.set(xlim=(0, widest), ylim=(height, 0), yticks=[])
    for row, entry in enumerate(entries):
        y, name, value = 46 * row + 28, entry.title, entry.value
        median, count = value.median, min(MAX_POINTS, len(entry.samples))
        samples = np.quantile(entry.samples, np.linspace(0, 1, count))
        ax.text(0, y - 10, name if len(name) < 45 else name[:42] + "…", color=INK)
        ax.text(widest, y - 10, f"{number(median)} {unit}", color=INK, ha="right")
        strokes(ax, [0], [y], [median], [y], color=SERIES[0], linewidth=12, alpha=0.35)
        strokes(ax, [median], [y - 6], [median], [y + 6], color=SERIES[0], linewidth=4)
        strokes(ax, [value.min], [y], [value.max], [y], color=INK, linewidth=1)
        strokes(ax, samples, y - 4, samples, y + 4, color=INK, linewidth=1)
        if entry.range:
            low, high = entry.range
            strokes(ax, [low], [y + 10], [high], [y + 10], color=SERIES[2], linewidth=3)
    return ax


def ranks(entries: Sequence["Entry"], unit: str) -> Axes:
    """Many entries in one small plot: median and range of each, from best to worst."""
    ax = axes(280, left=60, right=12, top=28, xlabel="rank", ylabel=unit)
    values = [entry.value for entry in entries]
    low, high = [value.min for value in values], [value.max for value in values]
    median = [value.median for value in values]
    x = np.arange(1, len(entries) + 1)
    strokes(ax, x, low, x, high, color=GREY, linewidth=min(6, 400 / len(entries)))
    ax.plot(x, median, color=SERIES[0], linewidth=1.8, drawstyle="steps-mid", clip_on=False)
    ax.set(xlim=(0.5, len(entries) + 0.5), ylim=(0, 1.02 * max(high)))
    return ax


def binary(size: float, _: Any = None) -> str:
    """A size in bytes."""
    power = min(3, int(math.log2(size)) // 10)
    return f"{size / 1024**power:g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def curves(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], unit: str) -> Axes:
    """Value over message size, for lines (name, points); only the first six are named."""
    ax = axes(340, left=60, right=176, top=28, xlabel="message size", ylabel=unit)
    ax.set_xscale("log", base=2)
    sizes, values = zip(*(point for _, run in series for point in run), strict=True)
    ax.set(xlim=(min(sizes), max(sizes)), ylim=(0, 1.05 * max(values)))
    first, last = math.ceil(math.log2(min(sizes))), math.floor(math.log2(max(sizes)))
    ax.set_xticks(2.0 ** np.arange(first, last + 1, max(1, (last - first) // 4)))
    ax.xaxis.set_major_formatter(FuncFormatter(binary))
    ax.minorticks_off()
    coloured = list(zip(series, [*SERIES, *[GREY] * len(series)], strict=False))
    for (_, run), colour in reversed(coloured):  # the first on top
        x, y = np.transpose(run)
        line(ax, x, y, colour)
    named = coloured[: len(SERIES)]
    labels(ax, [(run[-1][1], name, colour) for (name, run), colour in named])
    return ax


def speed_over_devices(
    devices: Sequence[int], speed: Sequence[float], each: float, unit: str
) -> Axes:
    """Speed over devices, and the line where every device does as much as ``each``."""
    ax = axes(300, left=70, right=110, top=28, xlabel="devices", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    most = max(devices)
    ax.set(xlim=(0, most), ylim=(0, 1.05 * max(*speed, each * most)))
    ax.plot([0, most], [0, each * most], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    line(ax, devices, speed, SERIES[0])
    labels(ax, [(each * most, "ideal", MUTED), (speed[-1], "measured", SERIES[0])])
    return ax


def roofline(
    rows: Sequence[tuple["Entry", float]], bandwidth: float, peaks: dict[str, float]
) -> Axes:
    """Entries with their TFLOP/s, under the roofs of ``bandwidth``, in GB/s, and ``peaks``."""
    top, slope = max(peaks.values()), bandwidth / 1000
    points_at = [(entry.value.intensity or 0, tflops) for entry, tflops in rows]
    x = [*(intensity for intensity, _ in points_at), top / slope]
    y = [*(tflops for _, tflops in points_at), *peaks.values(), min(x) * slope]
    (left, right), (low, high) = (
        (10 ** math.floor(math.log10(min(z) / 1.2)), 10 ** math.ceil(math.log10(max(z) * 1.2)))
        for z in (x, y)
    )
    ax = axes(360, 60, 160, 28, xlabel="FLOP per byte", ylabel="TFLOP/s per device")
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    ax.minorticks_off()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(numticks=7))
        axis.set_major_formatter(FuncFormatter(plain))
    start = max(left, low / slope)
    ax.plot([start, top / slope], [start * slope, top], color=MUTED, linewidth=1.2)
    for peak in peaks.values():
        ax.plot([peak / slope, right], [peak, peak], color=MUTED, linewidth=1.2)
    programs = list(dict.fromkeys(entry.program for entry, _ in rows))
    for (entry, _), (intensity, tflops) in zip(rows, points_at, strict=True):
        points(ax, [intensity], [tflops], SERIES[programs.index(entry.program)])
    roofs = [(peak, f"{dtype} {number(peak)}", INK) for dtype, peak in peaks.items()]
    labels(ax, roofs)
    for k, name in enumerate(programs):  # above the roof, where no point should be
        ax.text(0.02, 0.94 - 0.08 * k, name, color=SERIES[k], transform=ax.transAxes)
    return ax


def changes(runs: Sequence[dict[datetime, float]]) -> Axes:
    """Values over time, each relative to the median of all its runs."""
    ax = axes(220, 60, 48, 28, xlabel="time, UTC", ylabel="value / median of its runs")
    every, span = list[float](), set[datetime]()
    for medians, colour in reversed(list(zip(runs, SERIES, strict=False))):
        values = np.array([*medians.values()])
        values /= np.median(values)
        line(ax, dates.date2num([*medians]), values, colour)
        every += [*values]
        span |= {*medians}
    # A tenth up and down at least, so that small changes look small.
    ax.set_ylim(min(0.9, *every), max(1.1, *every))
    pattern = "%Y-%m-%d" if (max(span) - min(span)).days > 2 else "%m-%d %H:%M"
    ax.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))
    ax.xaxis.set_major_formatter(dates.DateFormatter(pattern))
    return ax
