"""Which nodes are slower than the others? Prints a table, and `exclude` for the configuration.

Compares every value of a node with those of the other nodes, with earlier ones in the history of
the same image on the same devices, and with the site's references.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared import versioned
from jaxway_shared.benchmark import AllocationResult, Case
from jaxway_shared.errors import UserError, with_code

from jaxway import files
from jaxway.analysis import history, references, stats
from jaxway.analysis.references import SiteReferences, Verdict

SCHEMA_VERSION = 3
MIN_DIFFERENCE = 0.05  # as a share; nobody excludes a node for less
MIN_VALUES = 3  # the median of fewer does not show which one is slow


@dataclass(frozen=True)
class Problem:
    """What is wrong with a node: a value that is ``slower_by`` a share, or a failure."""

    benchmark: str
    case: Case
    slower_by: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class NodeValue:
    """A value on all nodes, as speeds: higher is better, and of several devices the slowest."""

    benchmark: str
    case: Case
    quantity: str
    unit: str
    higher_is_better: bool  # of the value itself; if not, a speed is its inverse
    by_node: dict[str, float]
    earlier: list[float]
    median: float  # of all nodes and earlier ones


@dataclass(frozen=True)
class NodeCheck:
    """Each node's problems, the values that were compared, and the nodes to exclude."""

    nodes: dict[str, list[Problem]]
    values: list[NodeValue]
    exclude: list[str]

    @classmethod
    def read(cls, path: Path) -> "NodeCheck":
        return versioned.read_as(cls, path, "comparison of nodes", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        return versioned.encode(self, SCHEMA_VERSION)


def speed(median: float, per_device: Sequence[float] | None, higher_is_better: bool) -> float:
    """A value such that higher is better; of several devices the slowest's."""
    return min([median, *(per_device or [])]) if higher_is_better else 1 / median


def compare_values(
    results: Sequence[AllocationResult], earlier: history.Database | None
) -> Iterator[NodeValue]:
    """Each value with the speeds of all nodes and of earlier runs."""
    by_key: dict[tuple[Any, ...], dict[str, history.Row]] = {}
    for result in results:
        for row in history.rows(result):
            by_key.setdefault(row.key, {})[result.allocation.node or ""] = row
    for by_node in by_key.values():
        row = next(iter(by_node.values()))
        better = row.higher_is_better
        speeds = {node: speed(x.median, x.per_device, better) for node, x in by_node.items()}
        before = [speed(*x, better) for x in history.same_value(earlier, row)] if earlier else []
        yield NodeValue(
            benchmark=row.benchmark,
            case=json.loads(row.case),
            quantity=row.quantity,
            unit=row.unit,
            higher_is_better=better,
            by_node=speeds,
            earlier=before,
            median=statistics.median([*speeds.values(), *before]),
        )


def check_nodes(
    nodes: Sequence[str],
    results: Sequence[AllocationResult],
    earlier: history.Database | None,
    site: SiteReferences,
) -> NodeCheck:
    """Find what each node is slow or fails at, and whom to exclude.

    ``earlier`` is the history without these results; None, there is nothing else.
    """
    problems: dict[str, list[Problem]] = {node: [] for node in nodes}
    for node in problems.keys() - {result.allocation.node for result in results}:
        missing = with_code("JW463", "its job left no result")
        problems[node].append(Problem("", {}, failed=missing))
    values = list(compare_values(results, earlier))
    for value in values:
        slower = stats.outliers(value.by_node, value.earlier, MIN_DIFFERENCE)
        for node, share in slower.items():
            problems[node].append(Problem(value.benchmark, value.case, slower_by=share))
    for result in results:
        for each in references.judge(site, result):
            if each.verdict in (Verdict.SLOW, Verdict.FAILED):
                reason = f"{each.verdict}: {each.reason}"
                problem = Problem(each.benchmark.name, each.case, failed=reason)
                problems[result.allocation.node or ""].append(problem)
    bad = sorted(node for node, found in problems.items() if found)
    return NodeCheck(problems, values, bad)


def table(check: NodeCheck) -> Iterator[str]:
    """Lines for a person: what is wrong with each node, and the line for the configuration."""
    for node, problems in check.nodes.items():
        for problem in problems:
            name = references.case_name(problem.benchmark, problem.case)
            reason = problem.failed or f"{problem.slower_by:.0%} slower than the median"
            yield f"{node:16} {name:40} {reason}"
        if not problems:
            yield f"{node:16} no problem found"
    counts = [len(value.by_node) + len(value.earlier) for value in check.values]
    fewest = min(counts, default=0)
    if fewest < MIN_VALUES:
        yield (
            f"It takes {MIN_VALUES} values to find a slow node, and here are {fewest}: check more "
            "nodes, or these again later, when the history has more values."
        )
    if check.exclude or fewest >= MIN_VALUES:
        yield exclude_line(check) or "No node to exclude."


def exclude_line(check: NodeCheck) -> str:
    """What keeps jobs off the bad nodes, for the configuration; nothing, if none is bad."""
    return f"exclude: [{', '.join(check.exclude)}]" if check.exclude else ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    parser.add_argument("--history", type=Path, required=True, help="folder of the history")
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("--nodes", nargs="*", default=[], help="all nodes that were to be checked")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="their results")


def run(args: argparse.Namespace) -> None:
    """Compare nodes, write the result and print the table."""
    if not args.nodes:
        raise UserError("JW464", "no nodes to check: set node_check.nodes in the configuration")
    results = [AllocationResult.read(path) for path in args.results]
    own = [history.file_of(args.history, path) for path in args.results]
    earlier = history.connect(args.history, without=own)
    check = check_nodes(args.nodes, results, earlier, references.read_references(args.site))
    files.atomic_replace({args.out: json.dumps(check.to_json(), indent=1) + "\n"})
    print("\n".join(table(check)).rstrip())
