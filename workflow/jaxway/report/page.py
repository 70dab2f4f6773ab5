"""Write the report: one HTML file with all results of the workflow.

Reads only result files (docs/output.md). The page needs no other file: its plots are inline SVG,
coloured by the page's CSS variables, so that they follow light and dark.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import jinja2
from jaxway_shared import training
from jaxway_shared.benchmark import AllocationResult
from jaxway_shared.errors import UserError
from jaxway_shared.provenance import Provenance
from jaxway_shared.smoke_test import SmokeTestResult
from jaxway_shared.training import ModelSummary, ProgramSummary
from matplotlib import rc_context

from jaxway.analysis import references
from jaxway.analysis.node_check import NodeCheck
from jaxway.config.site import read_site
from jaxway.report.benchmarks import group, rooflines, scaling
from jaxway.report.costs import cost_table
from jaxway.report.entries import entries_of, overview
from jaxway.report.history import timelines
from jaxway.report.limits import share_of_limit
from jaxway.report.nodes import node_table
from jaxway.report.plots import STYLE, number
from jaxway.report.provenance import origin_of
from jaxway.report.training import MAX_SHOWN, byte_size, loss_plot, runs_of
from jaxway.slurm.accounting import read_cost

T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """All that the page shows."""

    smoke_test: SmokeTestResult
    models: dict[Path, ModelSummary]
    programs: dict[str, ProgramSummary]  # trainings by other programs, by name
    benchmarks: dict[str, AllocationResult]  # by allocation

    def provenances(self) -> list[tuple[str, Provenance]]:
        """Provenance of each result, with the result's name."""
        found = []
        if self.smoke_test.provenance:
            found.append(("smoke test", self.smoke_test.provenance))
        trainings = {path.parent.name: summary for path, summary in self.models.items()}
        for name, summary in (trainings | self.programs).items():
            found += [(name, segment.provenance) for segment in summary.segments]
        for allocation, result in self.benchmarks.items():
            for benchmark in result.benchmarks:
                if benchmark.provenance:
                    found.append((f"{benchmark.name} on {allocation}", benchmark.provenance))
        return found


def load(read: Callable[[Path], T], path: Path) -> T:
    """A result file. UserError where it is missing, unreadable or damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        sentence = f"{path} is missing: run snakemake again, which makes it"
    except OSError as error:
        sentence = f"{path} cannot be read ({error.strerror}): check its permissions"
    raise UserError("JW480", sentence)


def load_results(args: argparse.Namespace) -> Results:
    """All results that the command line names."""
    models, programs = {}, {}
    trainings = args.train
    if trainings == [Path("-")]:
        trainings = [Path(name) for name in sys.stdin.read().splitlines() if name]
    for path in trainings:
        summary = load(training.read_summary, path)
        if isinstance(summary, ModelSummary):
            models[path] = summary
        else:
            programs[path.parent.name] = summary
    return Results(
        smoke_test=load(SmokeTestResult.read, args.smoke_test),
        models=models,
        programs=programs,
        benchmarks={path.stem: load(AllocationResult.read, path) for path in args.benchmark},
    )


def printable(text: str) -> str:
    """``text`` without the control, direction and surrogate characters that a page cannot hold."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[2] / "report"),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
)
ENVIRONMENT.filters |= {"number": number, "byte_size": byte_size, "printable": printable}


def page(args: argparse.Namespace) -> str:
    """The HTML page."""
    results = load_results(args)
    runs, provenances = runs_of(results.models), results.provenances()
    entries = entries_of(references.read_references(args.site), results.benchmarks)
    node_check = load(NodeCheck.read, args.node_check) if args.node_check else None
    cost = load(read_cost, args.cost) if args.cost else None
    return ENVIRONMENT.get_template("report.html.j2").render(
        smoke_test=results.smoke_test,
        runs=runs,
        shown=runs[:MAX_SHOWN],
        programs=results.programs,
        loss_plot=loss_plot(runs[:MAX_SHOWN]) if len(runs) > 1 else None,
        benchmark_count=sum(len(result.benchmarks) for result in results.benchmarks.values()),
        verdicts=overview(entries),
        groups=group(entries),
        share_of_limit=partial(share_of_limit, site=args.site),
        scaling=scaling(entries),
        rooflines=rooflines(entries),
        history=timelines(args.history, entries),
        nodes=node_check and node_table(node_check),
        cost=cost and cost_table(cost),
        origin=origin_of(provenances) if provenances else None,
        page_of=read_site(args.site).page_of,
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--out", type=Path, required=True, help="page to write (HTML)")
    parser.add_argument("--smoke-test", type=Path, required=True, help="its result")
    parser.add_argument(
        "--train",
        type=Path,
        nargs="*",
        default=[],
        help="summaries of trainings; -: those that standard input names, one a line",
    )
    parser.add_argument(
        "--benchmark", type=Path, nargs="*", default=[], help="results of benchmarks"
    )
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("--history", type=Path, required=True, help="folder of the history")
    parser.add_argument("--node-check", type=Path, help="comparison of nodes")
    parser.add_argument("--cost", type=Path, help="node-hours of Slurm's jobs")


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    with rc_context(STYLE | {"font.size": 13}):
        text = page(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_name(args.out.name + ".part")
    part.write_text(text, encoding="utf-8", errors="replace")
    part.replace(args.out)
