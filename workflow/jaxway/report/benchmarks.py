"""The benchmarks' part of the report: values with their verdicts, curves over message sizes,
scaling, rooflines, history and nodes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxway.analysis import history, references
from jaxway.report.plots import (
    CSS,
    SERIES,
    bars,
    changes,
    curves,
    number,
    ranks,
    roofline,
    scaled,
    svg,
)

Result = dict[str, Any]
ROWS = 20  # entries of a group that get a row each in its plot
PLOTS = 20  # of a kind; all tables are there
SAID = {
    "pass": "passed",
    "slow": "slow",
    "implausibly fast": "implausibly fast",
    "failed": "failed",
    "no reference": "without reference",
    "skipped": "skipped",
}
# What a case that failed, or a kind of benchmark, does not have.
NONE = "quantity unit median interval min p95 max check bytes intensity tokens_per_call mfu"
EMPTY: Result = dict.fromkeys([*NONE.split(), "mfu_causal", "model_tflops_per_device"])
EMPTY |= {"higher_is_better": True, "rounds": [], "gpu": {}}
# What runs of the same value have in common.
SAME = ("site", "node_count", "devices", "benchmark", "unit", "options", "case")


def entries_of(site: Result, results: Sequence[Result]) -> list[Result]:
    """An entry for each value: what was measured, where, and the verdict on it."""
    found = []
    for result in results:
        for row in references.rows(site, result):
            benchmark, place = row["benchmark"], row["allocation"]
            measured, expected = row.get("measurement", {}), row.get("reference") or {}
            provenance = benchmark["provenance"] or {}
            devices = measured.get("per_device", [])
            if expected.get("unit") != measured.get("unit"):
                expected = {}
            found.append(
                EMPTY
                | measured
                | {key: row[key] for key in ("case", "verdict", "reason")}
                | {
                    "name": references.label(benchmark["name"], row["case"]),
                    "place": result["name"],
                    "benchmark": benchmark["name"],
                    "program": benchmark["program"],
                    "options": benchmark["options"],
                    "devices": provenance.get("devices") or place["nodes"] * place["gpus_per_node"],
                    "node_count": place["nodes"],
                    "site": provenance.get("site"),
                    "nodes": provenance.get("nodes"),
                    "samples": [x for part in measured.get("samples", []) for x in part],
                    "slowest": min(devices) / np.median(devices) - 1 if len(devices) > 1 else None,
                    "range": [expected[key] for key in ("low", "high") if expected],
                    "source": expected.get("source"),
                }
            )
    several = len({entry["place"] for entry in found}) > 1
    for entry in found:
        entry["label"] = entry["name"] + (f", {entry['place']}" if several else "")
    return found


def measured(entries: Sequence[Result]) -> list[Result]:
    """Those that have a value: one that failed has none, whatever its other rounds found."""
    return [each for each in entries if each["rounds"] and each["verdict"] != "failed"]


def overview(entries: Sequence[Result]) -> Result:
    """How many values have which verdict, and those that are bad."""
    counts = Counter(entry["verdict"] for entry in entries)
    bad = [entry for entry in entries if entry["verdict"] not in references.GOOD]
    text = ", ".join(
        f"{counts[verdict]} {said}" for verdict, said in SAID.items() if counts[verdict]
    )
    return {"text": text, "bad": bad, "css": "bad" if bad else "good" if counts["pass"] else ""}


def grouped(entries: Sequence[Result]) -> list[Result]:
    """Values of the same program, quantity and unit, with their plot. Cases that never came to a
    quantity are the last group of their program."""
    together: dict[tuple, list[Result]] = defaultdict(list)
    for entry in entries:
        together[entry["program"], entry["quantity"], entry["unit"]].append(entry)
    programs = list(dict.fromkeys(entry["program"] for entry in entries))
    order = sorted(together, key=lambda key: (programs.index(key[0]), key[1] is None))
    groups: list[Result] = []
    for program, quantity, unit in order:
        members = together[program, quantity, unit]
        values = measured(members)
        sign = -1 if members[0]["higher_is_better"] else 1
        ranked = sorted(values, key=lambda entry: sign * entry["median"])
        trusted = [entry for entry in ranked if entry["verdict"] != "implausibly fast"]
        many, curve = len(members) > ROWS, len({entry["bytes"] for entry in values}) > 1
        if many and not curve:
            rest = [entry for entry in members if entry["verdict"] in ("failed", "skipped")]
            members, values = ranked + rest, ranked
        drawn: Any = operations(values) if curve else values
        draw = curves if curve else ranks if many else bars
        text = ", ".join(f"{e['label']} {number(e['median'])} {unit}" for e in ranked[:3])
        plotted = values and sum(bool(group["plot"]) for group in groups) < PLOTS
        groups.append(
            {
                **{"program": program, "quantity": quantity, "unit": unit, "entries": members},
                **{"many": many, "curve": curve, "grey": curve and len(drawn) > len(SERIES)},
                **{"best": (trusted and trusted[0]), "worst": (values and ranked[-1])},
                "plot": plotted and svg(draw(drawn, unit), f"{quantity}: {text}"),
            }
        )
    return groups


def operations(entries: Sequence[Result]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Lines of value over message size, the highest first: one for each operation and place, or
    benchmark where a place has several."""
    runs = {(entry["place"], entry["benchmark"]) for entry in entries}
    key = "place" if len({place for place, _ in runs}) == len(runs) else "benchmark"
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry["bytes"]):
        name = entry["case"]["operation"] + (f" {entry[key]}" if len(runs) > 1 else "")
        found[name].append((entry["bytes"], entry["median"]))
    return sorted(found.items(), key=lambda item: -item[1][-1][1])


def scaling(entries: Sequence[Result]) -> list[Result]:
    """Training throughput over devices, each with its efficiency against the fewest devices."""
    together: dict[str, list[Result]] = defaultdict(list)
    for entry in measured(entries):
        if entry["program"] == "train":
            together[ordered({"options": entry["options"], "case": entry["case"]})].append(entry)
    found: list[Result] = []
    for members in together.values():
        members.sort(key=lambda entry: (entry["devices"], entry["node_count"]))
        first = members[0]
        if first["devices"] == members[-1]["devices"]:
            continue
        each = first["median"] / first["devices"]
        ideal = [each * entry["devices"] for entry in members]
        speed, unit = [entry["median"] for entry in members], first["unit"]
        kind = "strong" if first["options"].get("global_batch") else "weak"
        name = references.label(f"{kind} scaling", first["case"])
        rows = [e | {"efficiency": e["median"] / x} for e, x in zip(members, ideal, strict=True)]
        plot = len(found) < PLOTS and svg(
            scaled([e["devices"] for e in members], speed, each, unit),
            f"{name}: {unit} over devices",
        )
        found.append({"name": name, "rows": rows, "unit": unit, "plot": plot})
    return found


def rooflines(entries: Sequence[Result]) -> list[Result]:
    """For each place with a bandwidth and a peak: what bounds a program of some intensity, and how
    near to it the measured ones come (Williams, Waterman and Patterson 2009)."""
    found: list[Result] = []
    for place in dict.fromkeys(entry["place"] for entry in entries):
        here = [entry for entry in measured(entries) if entry["place"] == place]
        bandwidth, peaks = 0.0, dict[str, float]()
        for entry in here:
            case, value = entry["case"], entry["median"]
            if entry["verdict"] == "implausibly fast":
                continue
            if entry["program"] == "memory" and "host" not in case["kernel"]:
                bandwidth = max(bandwidth, value)
            if entry["program"] == "compute":
                peaks[case["dtype"]] = max(peaks.get(case["dtype"], 0), value)
        if not bandwidth or not peaks:
            continue
        rows = [
            entry | {"tflops": entry["median"] * entry["flops_per_unit"]}
            for entry in here
            if entry["intensity"]
        ]
        plot = len(found) < PLOTS and svg(
            roofline(rows, bandwidth, peaks), f"Roofline of {place}, in TFLOP/s per device"
        )
        found.append(
            {"place": place, "bandwidth": bandwidth, "peaks": peaks, "rows": rows, "plot": plot}
        )
    return found


def ordered(settings: Result) -> str:
    """The same text for the same settings, whatever their order."""
    return json.dumps(settings, sort_keys=True)


def past(store: Path, entries: Sequence[Result]) -> Result:
    """The values that the history has of several runs, those whose last changed most first."""
    database = history.opened(store)
    if not database:
        return {"rows": [], "plots": {}}
    columns = ", ".join(f'"{name}"' for name in (*SAME, "time", "median"))
    query = f"select {columns} from history order by time"
    runs: dict[tuple, dict[Any, float]] = defaultdict(dict)
    for *key, options, case, time, median in database.execute(query).fetchall():
        same = (*key, ordered(json.loads(options)), ordered(json.loads(case)))
        runs[same][time] = median
    rows: list[Result] = []
    for entry in measured(entries):
        *key, options, case = (entry[name] for name in SAME)
        found = runs[(*key, ordered(options), ordered(case))]
        if len(found) > 1:
            *earlier, now = found.values()
            usual = float(np.median(earlier))
            change = {"now": now, "usual": usual, "ratio": now / usual}
            rows.append(entry | change | {"runs": found, "css": None})
    rows.sort(key=lambda row: -abs(math.log(row["ratio"])))
    plots = {}
    for program in dict.fromkeys(row["program"] for row in rows):
        shown = [row for row in rows if row["program"] == program][: len(SERIES)]
        for row, colour in zip(shown, SERIES, strict=False):
            row["css"] = CSS[colour]
        plots[program] = svg(changes(shown), f"{program}: values of earlier runs and of the last")
    return {"rows": rows, "plots": plots}


def node_map(vetting: Result) -> Result:
    """Each node's values in percent of what is usual, and what it is named for."""
    columns, cells = [], defaultdict(list)
    for value in vetting["values"]:
        columns.append(references.label(value["benchmark"], value["case"]))
        for node, problems in vetting["nodes"].items():
            named = any(
                (problem["benchmark"], problem.get("case")) == (value["benchmark"], value["case"])
                for problem in problems
            )
            share = value["by_node"].get(node)
            cells[node].append(
                {"share": share and share / value["usual"], "css": "bad" if named else "good"}
            )
    rows = []
    for node, problems in vetting["nodes"].items():
        failed = [problem for problem in problems if "failed" in problem]
        slower = len(problems) - len(failed)
        rows.append({"node": node, "slower": slower, "failed": failed, "cells": cells[node]})
    return {"columns": columns, "rows": rows, "exclude": vetting["exclude"]}


def costs(cost: Result) -> Result:
    """Rows of what Slurm's jobs have used: by what they did, and by the run that submitted them."""

    def row(name: str, jobs: Sequence[Result]) -> Result:
        hours = {
            key: sum(
                job["nodes"] * job["seconds"] for job in jobs if job["no_progress"] or key == "all"
            )
            / 3600
            for key in ("all", "wasted")
        }
        return {
            "name": name,
            "jobs": len(jobs),
            "queued": max(job["queue_seconds"] for job in jobs),
        } | hours

    def rows(key: str) -> list[Result]:
        groups: dict[str, list[Result]] = {}
        for job in cost["jobs"]:
            groups.setdefault(job[key], []).append(job)
        return [row(name, jobs) for name, jobs in groups.items()]

    runs = {job["run"]: job["submitted"].replace("T", " ") for job in reversed(cost["jobs"])}
    return {
        "problem": cost["problem"],
        "cores_per_node": cost["cores_per_node"],
        "by_job": rows("name"),
        "by_run": [each | {"name": runs[each["name"]]} for each in rows("run")],
        "total": row("all", cost["jobs"]) if cost["jobs"] else None,
    }
