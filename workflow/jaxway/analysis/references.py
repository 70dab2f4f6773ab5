"""Is a benchmark's value what the site's references say? Prints what is not; exit code 1 then.

Runs on the host, and reads only result files and the site's site.yaml.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
GOOD = ("pass", "no reference", "skipped")


def label(name: str, case: Json) -> str:
    """What a case of a benchmark is called wherever people read it."""
    return " ".join([name, *map(str, case.values())])


def reference(site: Json, allocation: Json, benchmark: Json, case: Json) -> Json | None:
    """The site's first reference for a value; what one does not name may be anything."""
    provenance = benchmark["provenance"] or {}
    facts = {
        "benchmark": benchmark["program"],
        "nodes": allocation["nodes"],
        "gpus_per_node": allocation["gpus_per_node"],
    }
    for each in site.get("references", []):
        named = {key: each[key] for key in facts if key in each}
        if (
            named == {key: facts[key] for key in named}
            and each.get("case", {}).items() <= case.items()
            and each.get("device", "") in (provenance.get("device_kind") or "")
        ):
            return dict(each)
    return None


def judge(measurement: Json, expected: Json | None) -> tuple[str, str]:
    """Verdict on a measurement, and the reason in words; both sides of a reference count."""
    if reason := measurement.get("failed"):
        return "failed", reason
    if reason := measurement.get("skipped"):
        return "skipped", reason
    if not expected:
        return "no reference", ""
    value, unit = measurement["median"], measurement["unit"]
    if unit != expected["unit"]:
        return "no reference", f"the reference is in {expected['unit']}, not {unit}"
    said = f"{value:.4g} {unit}, where {expected['low']:g} to {expected['high']:g} are due"
    if value < expected["low"]:
        return "slow", said
    if value > expected["high"]:
        return "implausibly fast", said
    return "pass", said


def wrong_transport(site: Json, benchmark: Json) -> str:
    """Transports that NCCL took and the site does not expect, as a sentence."""
    allowed, taken = site.get("transports"), benchmark["transports"]
    if not allowed:
        return ""
    if not taken and benchmark["program"] == "collective":
        where = benchmark["provenance"] or {"platform": None}
        if where["platform"] == "gpu" and where["devices"] > 1:
            return "NCCL's log names no transport"
    wrong = {name: count for name, count in taken.items() if name not in allowed}
    if not wrong:
        return ""
    said = ", ".join(
        f"{name} for {count} of {sum(taken.values())}" for name, count in wrong.items()
    )
    return f"NCCL took {said} channels, where {' and '.join(allowed)} are expected"


def rows(site: Json, result: Json) -> Iterator[Json]:
    """Each measurement of an allocation's result with its verdict; and what failed as a whole."""
    for benchmark in result["benchmarks"]:
        common = {"allocation": result["allocation"], "benchmark": benchmark}
        if benchmark["failed"]:
            yield common | {"case": {}, "verdict": "failed", "reason": benchmark["failed"]}
        transport = wrong_transport(site, benchmark)
        for measurement in benchmark["measurements"]:
            expected = reference(site, result["allocation"], benchmark, measurement["case"])
            verdict, reason = judge(measurement, expected)
            if transport and verdict != "skipped":
                verdict, reason = "failed", transport
            yield common | {
                "case": measurement["case"],
                "measurement": measurement,
                "reference": expected,
                "verdict": verdict,
                "reason": reason,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("results", type=Path, nargs="*", help="results of benchmarks")
    args = parser.parse_args()
    site = yaml.safe_load(args.site.read_text())
    bad = [
        f"{label(row['benchmark']['name'], row['case'])} on {path.stem}: {row['verdict']}; "
        + row["reason"]
        for path in args.results
        for row in rows(site, json.loads(path.read_text()))
        if row["verdict"] not in GOOD
    ]
    if bad:
        again = "When it is mended, or to measure again: snakemake ... --forcerun=benchmark_run"
        sys.exit("\n".join([*bad, again]))
