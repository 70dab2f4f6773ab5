"""The report's part about nodes: each node's values, and what is wrong with it."""

from dataclasses import dataclass

from jaxway.analysis import references
from jaxway.analysis.node_check import NodeCheck, Problem, exclude_line


@dataclass(frozen=True)
class Cell:
    """A node's value as a share of the median; None, it has none."""

    share: float | None
    css: str


@dataclass(frozen=True)
class NodeRow:
    """A node: how many of its values are slow, what failed, and all its values."""

    node: str
    slower: int
    failed: list[tuple[str, str]]  # name and reason
    cells: list[Cell]


@dataclass(frozen=True)
class NodeTable:
    """All nodes, with a column for each value."""

    columns: list[str]
    rows: list[NodeRow]
    exclude: str


def node_table(check: NodeCheck) -> NodeTable:
    """The table of a comparison of nodes."""
    columns = [references.case_name(value.benchmark, value.case) for value in check.values]
    rows = [node_row(check, node, problems) for node, problems in check.nodes.items()]
    return NodeTable(columns, rows, exclude_line(check))


def node_row(check: NodeCheck, node: str, problems: list[Problem]) -> NodeRow:
    """A node's row."""
    bad = [(problem.benchmark, problem.case) for problem in problems]
    cells = []
    for value in check.values:
        speed = value.by_node.get(node)
        if speed is None:
            cells.append(Cell(None, ""))
        else:
            css = "bad" if (value.benchmark, value.case) in bad else "good"
            cells.append(Cell(speed / value.median, css))
    failed = [
        (references.case_name(problem.benchmark, problem.case), problem.failed)
        for problem in problems
        if problem.failed is not None
    ]
    return NodeRow(node, len(problems) - len(failed), failed, cells)
