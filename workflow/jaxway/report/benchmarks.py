"""The benchmarks' part of the report: values in groups with their plots, scaling, and rooflines."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jaxway.analysis import references
from jaxway.analysis.references import Verdict
from jaxway.report.entries import Entry
from jaxway.report.plots import (
    SERIES,
    bars,
    curves,
    number,
    ranks,
    roofline,
    speed_over_devices,
    svg,
)

MAX_BARS = 20  # entries of a group that get a row each in its plot
MAX_PLOTS = 20  # of a kind; all tables are there


@dataclass(frozen=True)
class Group:
    """Entries of the same program, quantity and unit; without a quantity, those without a value."""

    program: str
    quantity: str | None
    unit: str | None
    entries: list[Entry]
    ranked: list[Entry]  # those that have a value, from best to worst
    plot: Markup | None
    many: bool  # too many for bars
    curve: bool  # over message sizes
    grey: bool  # more curves than colours

    @property
    def higher_is_better(self) -> bool:
        return self.ranked[0].value.higher_is_better

    @property
    def best(self) -> Entry | None:
        """The best that is plausible."""
        trusted = (entry for entry in self.ranked if entry.verdict != Verdict.IMPLAUSIBLE)
        return next(trusted, None)

    @property
    def worst(self) -> Entry:
        return self.ranked[-1]

    @property
    def formulas(self) -> dict[str, list[str]]:
        """How values are computed, each with the names of its entries; of curves, the best's."""
        found: dict[str, list[str]] = defaultdict(list)
        for entry in self.ranked[:1] if self.curve else self.ranked:
            found[entry.value.formula].append(entry.title)
        return found


def group(entries: Sequence[Entry]) -> list[Group]:
    """Entries in groups. Those that have no value are the last group of their program."""
    together: dict[tuple[str, str | None, str | None], list[Entry]] = defaultdict(list)
    for entry in entries:
        found = entry.measurement
        quantity, unit = (found.quantity, found.unit) if found else (None, None)
        together[entry.program, quantity, unit].append(entry)
    programs = list(dict.fromkeys(entry.program for entry in entries))
    order = sorted(together, key=lambda key: (programs.index(key[0]), key[1] is None))
    groups: list[Group] = []
    for key in order:
        plotted = sum(each.plot is not None for each in groups) < MAX_PLOTS
        groups.append(make_group(*key, together[key], plotted))
    return groups


def make_group(
    program: str, quantity: str | None, unit: str | None, entries: list[Entry], plotted: bool
) -> Group:
    """A group with its plot."""
    values = [entry for entry in entries if entry.has_value]
    ranked = sorted(
        values,
        key=lambda entry: entry.value.median * (-1 if entry.value.higher_is_better else 1),
    )
    many, curve = len(entries) > MAX_BARS, len({entry.value.bytes for entry in values}) > 1
    if many and not curve:
        entries = ranked + [entry for entry in entries if not entry.has_value]
    lines, plot = operations(values) if curve else [], None
    if values and unit and plotted:
        drawn = ranks(ranked, unit) if many else bars(values, unit)
        best = ", ".join(f"{e.title} {number(e.value.median)} {unit}" for e in ranked[:3])
        plot = svg(curves(lines, unit) if curve else drawn, f"{quantity}: {best}")
    return Group(
        program=program,
        quantity=quantity,
        unit=unit,
        entries=entries,
        ranked=ranked,
        plot=plot,
        many=many,
        curve=curve,
        grey=len(lines) > len(SERIES),
    )


def operations(entries: Sequence[Entry]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Lines of value over message size, the highest first: one for each operation and allocation,
    or benchmark where an allocation has several."""
    runs = {(entry.allocation, entry.benchmark) for entry in entries}
    by_allocation = len({allocation for allocation, _ in runs}) == len(runs)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.value.bytes or 0):
        run = f" {entry.allocation if by_allocation else entry.benchmark}" if len(runs) > 1 else ""
        found[f"{entry.case['operation']}{run}"].append(
            (entry.value.bytes or 0, entry.value.median)
        )
    return sorted(found.items(), key=lambda item: -item[1][-1][1])


@dataclass(frozen=True)
class Scaling:
    """Training throughput over devices, each with its efficiency against the fewest devices."""

    name: str
    unit: str
    rows: list[tuple[Entry, float]]
    plot: Markup | None


def scaling(entries: Sequence[Entry]) -> list[Scaling]:
    """Each training benchmark that was measured on several numbers of devices."""
    together: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.program == "train" and entry.has_value:
            together[json.dumps([entry.options, entry.case], sort_keys=True)].append(entry)
    found: list[Scaling] = []
    for members in together.values():
        members.sort(key=lambda entry: (entry.devices, entry.node_count))
        first, unit = members[0], members[0].value.unit
        if first.devices == members[-1].devices:
            continue
        each = first.value.median / first.devices
        kind = "strong" if first.options.get("global_batch") else "weak"
        name, plot = references.case_name(f"{kind} scaling", first.case), None
        if len(found) < MAX_PLOTS:
            devices = [entry.devices for entry in members]
            speeds = [entry.value.median for entry in members]
            plot = svg(
                speed_over_devices(devices, speeds, each, unit), f"{name}: {unit} over devices"
            )
        rows = [(entry, entry.value.median / (each * entry.devices)) for entry in members]
        found.append(Scaling(name, unit, rows, plot))
    return found


@dataclass(frozen=True)
class Roofline:
    """What bounds a program of some intensity on an allocation's devices, and how near to that the
    measured ones come (Williams, Waterman and Patterson 2009)."""

    allocation: str
    bandwidth: float  # GB/s
    peaks: dict[str, float]  # TFLOP/s by type
    rows: list[tuple[Entry, float]]  # with TFLOP/s per device
    plot: Markup | None


def rooflines(entries: Sequence[Entry]) -> list[Roofline]:
    """The roofline of each allocation with a bandwidth and a peak."""
    found: list[Roofline] = []
    for allocation in dict.fromkeys(entry.allocation for entry in entries):
        here = [e for e in entries if e.allocation == allocation and e.has_value]
        bandwidth, peaks = roofs(here)
        if not bandwidth or not peaks:
            continue
        rows = [
            (entry, entry.value.median * entry.value.flops_per_unit)
            for entry in here
            if entry.value.intensity and entry.value.flops_per_unit
        ]
        plot = None
        if len(found) < MAX_PLOTS:
            title = f"Roofline of {allocation}, in TFLOP/s per device"
            plot = svg(roofline(rows, bandwidth, peaks), title)
        found.append(Roofline(allocation, bandwidth, peaks, rows, plot))
    return found


def roofs(entries: Sequence[Entry]) -> tuple[float, dict[str, float]]:
    """Best plausible bandwidth of a kernel, 0 without one, and best product of each type."""
    bandwidth, peaks = 0.0, dict[str, float]()
    for entry in entries:
        case, value = entry.case, entry.value.median
        if entry.verdict == Verdict.IMPLAUSIBLE:
            continue
        if entry.program == "memory" and "host" not in case["kernel"]:
            bandwidth = max(bandwidth, value)
        if entry.program == "compute":
            peaks[case["dtype"]] = max(peaks.get(case["dtype"], 0), value)
    return bandwidth, peaks
