"""The report's part about training: loss curves, and whether the model beats gzip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxway_shared import training
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError
from jaxway_shared.training import ModelSummary
from markupsafe import Markup

from jaxway.report.plots import (
    CSS,
    GREY,
    INK,
    MAX_POINTS,
    MUTED,
    PAGE,
    SERIES,
    axes,
    labels,
    number,
    strokes,
    svg,
)
from jaxway.report.samples import decoder, samples_of
from jaxway.report.trace import StepTime, step_time

INTERNAL_ARGS = {
    "data_record",
    "out",
    "state",
    "states",
    "devices",
    "platform",
    "container_record",
    "image",
    "host_suffix",
}
MAX_SHOWN = 100  # runs with a plot, which takes 50 ms; a table has all
BASELINES = {"unigram_bits_per_byte": "unigram", "gzip_bits_per_byte": "gzip \N{MINUS SIGN}9"}


@dataclass(frozen=True)
class Run:
    """A training by train.py, and how it is shown.

    Losses are in bits per byte; in nats per token, if its tokenizer loses text.
    """

    path: Path  # of the summary; beside it is what is read when it is shown
    summary: ModelSummary
    colour: str

    @property
    def name(self) -> str:
        return self.path.parent.name

    @cached_property
    def curves(self) -> tuple[Any, Any]:
        """Steps and losses; numpy, 2 x n; and the same on the held-out text while it trained."""
        return load_curves(self.path.with_name(training.METRICS), self.summary.data)

    @property
    def curve(self) -> Any:
        return self.curves[0]

    @property
    def validations(self) -> Any:
        return self.curves[1]

    @cached_property
    def sample(self) -> str | None:
        """What it writes; None, no text."""
        decode, tokens = decoder(self.summary.data), self.summary.sample_tokens
        return decode(tokens) if decode and tokens else self.summary.sample

    @cached_property
    def samples(self) -> list[tuple[int, str]]:
        """Steps, and what the model wrote after them."""
        decode = decoder(self.summary.data)
        return samples_of(self.path.with_name(training.METRICS), decode) if decode else []

    @cached_property
    def step_time(self) -> StepTime | None:
        """Where the time of its traced steps went, if some were."""
        traced = [
            profile["steps"]
            for part in self.summary.segments
            if (profile := part.provenance.arguments.get("profile"))
            and part.first_step <= profile["first"] <= part.last_step
        ]
        return step_time(self.path.with_name("state"), traced[-1]) if traced else None

    @property
    def validation(self) -> float:
        """The loss on the held-out text."""
        bits = self.summary.validation_bits_per_byte
        return self.summary.validation_nats_per_token if bits is None else bits

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best validation while it was trained."""
        steps, losses = self.validations
        if not len(steps):
            return None
        index = int(np.argmin(losses))
        return int(steps[index]), float(losses[index])

    @property
    def unit(self) -> str:
        """The unit of losses."""
        return "bits per byte" if self.summary.data.lossless else "nats per token"

    @property
    def css(self) -> str:
        """Its colour in the page."""
        return CSS[self.colour]

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that a user chooses."""
        arguments = self.summary.provenance.arguments
        return {key: value for key, value in arguments.items() if key not in INTERNAL_ARGS}

    @property
    def trained_bytes(self) -> float:
        """Bytes of text that it was trained on, repetitions included."""
        arguments, data = self.summary.provenance.arguments, self.summary.data
        tokens = (self.summary.steps or 0) * arguments["global_batch"] * arguments["context"]
        return float(tokens * data.train_bytes / data.train_tokens)

    @property
    def plot(self) -> Markup:
        return loss_plot([self])

    @property
    def verdict(self) -> str:
        return verdict(self)


def runs_of(summaries: dict[Path, ModelSummary]) -> list[Run]:
    """All runs, the best first.

    Those with a tokenizer that loses text come last: they cannot be compared with the others.
    """
    best_first = sorted(summaries.items(), key=lambda item: order(item[1]))
    colours = [*SERIES, *[GREY] * len(summaries)]
    return [
        Run(path, summary, colour)
        for (path, summary), colour in zip(best_first, colours, strict=False)
    ]


def order(summary: ModelSummary) -> tuple[float, float]:
    """What the best of several summaries has the least of."""
    bits = summary.validation_bits_per_byte
    return (math.inf if bits is None else bits, summary.validation_nats_per_token)


def load_curves(path: Path, data: DataRecord) -> tuple[Any, Any]:
    """Steps and losses that a training on ``data`` logged, 2 x n: means over equal parts if they
    are many; and those of its validations."""
    try:
        lines = training.read_metrics(path)
        losses = [(line.step, line.numbers["loss"]) for line in lines]
    except (ValueError, KeyError) as error:
        sentence = f"{path} is damaged ({error!r}): delete it and run snakemake again"
        raise UserError("JW481", sentence) from None
    if not lines:
        sentence = f"{path} has no steps: delete summary.json beside it and run snakemake again"
        raise UserError("JW481", sentence)
    name = "validation_loss"
    validations = [(line.step, line.numbers[name]) for line in lines if name in line.numbers]
    return (
        curve_of(losses, data, data.train_tokens, data.train_bytes),
        curve_of(validations, data, data.validation_tokens, data.validation_bytes),
    )


def curve_of(losses: list[tuple[int, float]], data: DataRecord, tokens: int, size: int) -> Any:
    """Steps and losses, 2 x n, of text with so many tokens and bytes."""
    points = np.array(losses, float).reshape(-1, 2)
    if data.lossless:
        points[:, 1] *= tokens / size / math.log(2)
    parts = np.array_split(points, MAX_POINTS) if len(points) > MAX_POINTS else points[:, None]
    return np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2).T


def byte_size(count: float) -> str:
    """A number of bytes."""
    power = min(3, int(math.log10(max(1, count)) / 3))
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def loss_plot(runs: Sequence[Run]) -> Markup:
    """Loss over steps, final validations as points, and the baselines if all runs share them.

    Of runs with other units than the first only that one's are shown.
    """
    unit, runs = runs[0].unit, [run for run in runs if run.unit == runs[0].unit]
    ax = axes(340, left=30, right=128, top=28, xlabel="step", ylabel=unit)
    best, last = runs[0].summary, max(run.summary.steps or 0 for run in runs)
    for run in reversed(runs):  # the best on top
        x, y = run.summary.steps, run.validation
        ax.plot(*run.curve, color=run.colour, linewidth=1.8, clip_on=False)
        ax.plot(*run.validations, color=run.colour, linewidth=1.8, linestyle=":", clip_on=False)
        for colour, width in ((PAGE, 13), (run.colour, 9)):  # a point with a halo
            strokes(ax, [x], [y], [x], [y], cap="round", color=colour, linewidth=width, zorder=3)
    ends = [(runs[0].validation, "best" if len(runs) > 1 else "model", INK)]
    for field, name in BASELINES.items() if best.data.lossless else ():
        baseline = getattr(best, field)
        if all(getattr(run.summary, field) == baseline for run in runs):
            ends.append((baseline, name, MUTED))
            dashed = (0, (4, 3))
            ax.axhline(baseline, color=MUTED, linestyle=dashed, linewidth=1.2, clip_on=False)
    # From 0 to what a guess costs, the 8 bits of a byte or a token's nats, or whatever is higher.
    guess = 8 if best.data.lossless else math.log(best.data.vocabulary)
    height = 1.02 * max(
        guess, *(y for y, *_ in ends), *(max([*run.curve[1], *run.validations[1]]) for run in runs)
    )
    ax.set(xlim=(0, last), ylim=(0, height))
    labels(ax, [(y, f"{name} {y:.3f}", colour) for y, name, colour in ends])
    finals = ", ".join(f"{name} {y:.3f}" for y, name, _ in ends)
    return svg(ax, f"Training loss over {last} steps, in {unit}; at the end: {finals}.")


def verdict(run: Run) -> str:
    """Does the model beat gzip, by how much, and if not, why?"""
    summary = run.summary
    model, train = summary.validation_bits_per_byte, summary.train_bits_per_byte
    gzip, length = summary.gzip_bits_per_byte, summary.data.train_bytes
    if model is None or train is None:
        data = summary.data
        unknown = data.unknown_tokens / (data.validation_tokens - data.special_tokens)
        return (
            f"{run.validation:.3f} nats for each token of unseen text. The tokenizer does not give "
            f"that text back ({unknown:.1%} of the tokens are unknown), so there are no bits per "
            "byte, and no comparison with gzip."
        ).replace("%", "\N{NARROW NO-BREAK SPACE}%")
    share = f"{abs(model / gzip - 1):.1%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")
    text = f"{model:.3f} bits for each byte of unseen text, and gzip needs {gzip:.3f}"
    if model < gzip:
        return f"The model beats gzip by {share}: it needs {text}."
    if model > summary.unigram_bits_per_byte:
        why = "It is worse than the byte frequencies alone: try a lower learning rate."
    elif run.trained_bytes < length:
        read = f"{byte_size(run.trained_bytes)} in {number(summary.steps)} steps"
        why = f"It has seen too little text: {read}, of {byte_size(length)}. "
        why += "Raise steps or global_batch."
    elif model > 1.05 * train:
        why = f"It fits its training text better ({train:.3f}): give it more data."
    else:
        repeats = run.trained_bytes / length
        seen = f"{byte_size(length)} {repeats:.1f} times on average"
        why = f"It saw {seen}: raise layers, width or steps."
    return f"The model does not beat gzip: it needs {text}, so {share} more. {why}"
