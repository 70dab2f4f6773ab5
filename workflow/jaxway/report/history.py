"""The report's part about the history: values of benchmarks over several runs."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from markupsafe import Markup

from jaxway.analysis import history
from jaxway.report.entries import Entry
from jaxway.report.plots import CSS, SERIES, changes, svg


@dataclass(frozen=True)
class Timeline:
    """A value in several runs."""

    entry: Entry
    runs: dict[datetime, float]
    css: str | None  # colour of its line, None without one

    @property
    def last(self) -> float:
        return [*self.runs.values()][-1]

    @property
    def median_before(self) -> float:
        """Median of all runs but the last."""
        return float(np.median([*self.runs.values()][:-1]))

    @property
    def ratio(self) -> float:
        return self.last / self.median_before


@dataclass(frozen=True)
class Timelines:
    """Values in several runs, those whose last changed most first; and a plot of each program."""

    rows: list[Timeline]
    plots: dict[str, Markup]


def timelines(store: Path, entries: Sequence[Entry]) -> Timelines:
    """The values that the history has of several runs."""
    database = history.connect(store)
    known = history.timelines(database) if database else {}
    rows = [
        Timeline(entry, runs, None)
        for entry in entries
        if entry.has_value and len(runs := known.get(key_of(entry), {})) > 1
    ]
    rows.sort(key=lambda row: -abs(math.log(row.ratio)))
    plots = {}
    for program in dict.fromkeys(row.entry.program for row in rows):
        numbers = [k for k, row in enumerate(rows) if row.entry.program == program]
        shown = numbers[: len(SERIES)]
        for k, colour in zip(shown, SERIES, strict=False):
            rows[k] = replace(rows[k], css=CSS[colour])
        plot = changes([rows[k].runs for k in shown])
        plots[program] = svg(plot, f"{program}: values of earlier runs and of the last")
    return Timelines(rows, plots)


def key_of(entry: Entry) -> tuple[object, ...]:
    """The entry's key in the history, as history.TIMELINE_KEY lists its parts."""
    options, case = (json.dumps(x, sort_keys=True) for x in (entry.options, entry.case))
    unit = entry.value.unit
    return entry.site, entry.node_count, entry.devices, entry.benchmark, unit, options, case
