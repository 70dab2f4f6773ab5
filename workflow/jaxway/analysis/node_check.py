"""Which nodes are slower than the others? Prints a table and the `--exclude=` line for Slurm.

Compares every value of a node with those of the other nodes, with those that the history has of
the same image on the same devices, and with the site's references.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jaxway import files
from jaxway.analysis import history, references, stats

MARGIN = 0.05  # a smaller share is none that anybody excludes a node for
ENOUGH = 3  # values, of which the median can tell which one is the odd one out
Json = dict[str, Any]


def speed(median: float, per_device: list[float] | None, higher_is_better: bool) -> float:
    """A value such that larger is better; of several devices the slowest's."""
    return min([median, *(per_device or [])]) if higher_is_better else 1 / median


def compared(results: list[Json], earlier: Any) -> Iterator[Json]:
    """Each value with the speeds of all nodes and of earlier runs, and their median."""
    rows: dict[str, dict[str, Json]] = {}
    for result in results:
        for row in history.rows_of(result):
            key = json.dumps([row[column] for column in history.SAME])
            rows.setdefault(key, {})[result["allocation"]["node"]] = row
    for by_node in rows.values():
        row = next(iter(by_node.values()))
        parts = ("median", "per_device", "higher_is_better")
        speeds = {node: speed(*(each[x] for x in parts)) for node, each in by_node.items()}
        before = [speed(*x) for x in history.like(earlier, row, parts)] if earlier else []
        yield {
            **{key: row[key] for key in ("benchmark", "quantity", "unit", "higher_is_better")},
            "case": json.loads(row["case"]),
            "by_node": speeds,
            "earlier": before,
            "usual": statistics.median([*speeds.values(), *before]),
        }


def vet(nodes: list[str], results: list[Json], earlier: Any, site: Json) -> Json:
    """What each node is slow or fails at, the values it was compared by, and whom to exclude.

    ``earlier`` is a connection to the history without these results; None, there is nothing else.
    """
    problems: dict[str, list[Json]] = {node: [] for node in nodes}
    for node in problems.keys() - {result["allocation"]["node"] for result in results}:
        problems[node].append({"benchmark": "", "case": {}, "failed": "its job left no result"})
    values = list(compared(results, earlier))
    for value in values:
        what = {key: value[key] for key in ("benchmark", "case")}
        slower = stats.outliers(value["by_node"], value["earlier"], MARGIN)
        for node, share in slower.items():
            problems[node].append(what | {"slower_by": share})
    for result in results:
        for row in references.rows(site, result):
            if row["verdict"] in ("slow", "failed"):
                problem = {"benchmark": row["benchmark"]["name"], "case": row["case"]}
                problem["failed"] = f"{row['verdict']}: {row['reason']}"
                problems[result["allocation"]["node"]].append(problem)
    bad = sorted(node for node, found in problems.items() if found)
    return {
        "nodes": problems,
        "values": values,
        "exclude": f"--exclude={','.join(bad)}" if bad else "",
    }


def table(found: Json) -> Iterator[str]:
    """Lines for a person: what is wrong with each node, and the line for Slurm."""
    for node, problems in found["nodes"].items():
        for problem in problems:
            what = references.label(problem["benchmark"], problem["case"])
            said = problem.get("failed") or f"{problem['slower_by']:.0%} slower than usual"
            yield f"{node:16} {what:40} {said}"
        if not problems:
            yield f"{node:16} nothing found"
    counts = [len(value["by_node"]) + len(value["earlier"]) for value in found["values"]]
    fewest = min(counts, default=0)
    if fewest < ENOUGH:
        yield (
            f"A slow node shows among {ENOUGH} values or more, and here are {fewest}: vet more "
            "nodes, or these again, when the history knows them."
        )
    if found["exclude"] or fewest >= ENOUGH:
        yield found["exclude"] or "No node to exclude."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    parser.add_argument("--history", type=Path, required=True, help="folder of the history")
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("--nodes", nargs="*", default=[], help="all nodes that were to be vetted")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="results of those")
    args = parser.parse_args()
    if not args.nodes:
        files.fail("no node to vet: name some as node_check.nodes in the configuration")
    results = [json.loads(path.read_text()) for path in args.results]
    known = [history.file_of(args.history, path) for path in args.results]
    earlier = history.opened(args.history, without=known)
    found = vet(args.nodes, results, earlier, yaml.safe_load(args.site.read_text()))
    files.atomic_replace({args.out: json.dumps(found, indent=1) + "\n"})
    print("\n".join(table(found)).rstrip())
