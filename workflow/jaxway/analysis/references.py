"""The verdict on each benchmark's value, by the site's references and the transports it allows.

The report, the comparison of nodes and the command `check-references` all use ``judge``.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from jaxway_shared import versioned
from jaxway_shared.benchmark import (
    AllocatedNodes,
    AllocationResult,
    BenchmarkResult,
    Case,
    CaseResult,
    Measurement,
)
from jaxway_shared.errors import UserError, with_code

from jaxway.config.site import read_site


class Verdict(StrEnum):
    """What a value is, compared with its reference; or why it has no value."""

    PASS = "pass"
    SLOW = "slow"
    IMPLAUSIBLE = "implausibly fast"
    FAILED = "failed"
    NO_REFERENCE = "no reference"
    SKIPPED = "skipped"

    @property
    def is_bad(self) -> bool:
        """Whether a run with this verdict fails."""
        return self in (Verdict.SLOW, Verdict.IMPLAUSIBLE, Verdict.FAILED)


@dataclass(frozen=True)
class Reference:
    """The range of a value at a site; where a condition is None or empty, any value meets it."""

    unit: str
    low: float
    high: float
    source: str
    benchmark: str | None = None  # the program
    nodes: int | None = None
    gpus_per_node: int | None = None
    device: str = ""  # a part of the device's kind
    case: Case = field(default_factory=dict)

    def is_for(self, nodes: AllocatedNodes, benchmark: BenchmarkResult, case: Case) -> bool:
        """Whether this is a reference for a case of a benchmark."""
        device_kind = benchmark.provenance and benchmark.provenance.device_kind
        return (
            self.benchmark in (None, benchmark.program)
            and self.nodes in (None, nodes.nodes)
            and self.gpus_per_node in (None, nodes.gpus_per_node)
            and self.device in (device_kind or "")
            and self.case.items() <= case.items()
        )


@dataclass(frozen=True)
class SiteReferences:
    """What a site expects: the ranges of values, and the transports that NCCL may use."""

    references: Sequence[Reference] = ()
    transports: Sequence[str] | None = None  # None, any


@dataclass(frozen=True)
class JudgedCase:
    """A case of a benchmark and the verdict on it; without a case, a benchmark that failed."""

    nodes: AllocatedNodes
    benchmark: BenchmarkResult
    case: Case
    measurement: Measurement | None
    verdict: Verdict
    reason: str
    reference: Reference | None = None

    @property
    def name(self) -> str:
        """The case's name wherever people read it."""
        return case_name(self.benchmark.name, self.case)


def case_name(benchmark: str, case: Case) -> str:
    """Name of a case of a benchmark wherever people read it."""
    values = (f"{value} KiB" if key == "kilobytes" else str(value) for key, value in case.items())
    return " ".join([benchmark, *values])


def read_references(path: Path) -> SiteReferences:
    """What a site.yaml expects of benchmarks."""
    site = read_site(path)
    references = [versioned.decode(Reference, each) for each in site.references]
    return SiteReferences(references, site.transports)


def judge(site: SiteReferences, result: AllocationResult) -> Iterator[JudgedCase]:
    """The verdict on each case of an allocation; and on each benchmark that failed as a whole."""
    for benchmark in result.benchmarks:
        if benchmark.failed:
            yield JudgedCase(
                result.allocation, benchmark, {}, None, Verdict.FAILED, benchmark.failed
            )
        transport = wrong_transport(site.transports, benchmark)
        for each in benchmark.cases:
            found = [
                x for x in site.references if x.is_for(result.allocation, benchmark, each.case)
            ]
            reference = found[0] if found else None
            verdict, reason = judge_case(each, reference)
            if transport and verdict != Verdict.SKIPPED:
                verdict, reason = Verdict.FAILED, transport
            if reference and each.measurement and reference.unit != each.measurement.unit:
                reference = None
            yield JudgedCase(
                nodes=result.allocation,
                benchmark=benchmark,
                case=each.case,
                measurement=each.measurement,
                verdict=verdict,
                reason=reason,
                reference=reference,
            )


def judge_case(result: CaseResult, reference: Reference | None) -> tuple[Verdict, str]:
    """Verdict and its reason; a value above the reference is as wrong as one below it."""
    if result.failed:
        return Verdict.FAILED, result.failed
    if result.skipped or not result.measurement:
        return Verdict.SKIPPED, result.skipped or ""
    if not reference:
        return Verdict.NO_REFERENCE, ""
    value, unit = result.measurement.median, result.measurement.unit
    if unit != reference.unit:
        return Verdict.NO_REFERENCE, f"the reference is in {reference.unit}, not {unit}"
    reason = f"{value:.4g} {unit}, expected {reference.low:g} to {reference.high:g}"
    if reference.low <= value <= reference.high:
        return Verdict.PASS, reason
    verdict = Verdict.SLOW if value < reference.low else Verdict.IMPLAUSIBLE
    return verdict, with_code("JW460", reason)


def wrong_transport(allowed: Sequence[str] | None, benchmark: BenchmarkResult) -> str:
    """Transports that NCCL used and the site does not allow, as a sentence."""
    used = benchmark.transports
    if not allowed:
        return ""
    if not used and benchmark.program == "collective":
        where = benchmark.provenance
        if where and where.platform == "gpu" and where.devices > 1:
            return with_code("JW461", "NCCL's log names no transport")
    wrong = {name: count for name, count in used.items() if name not in allowed}
    if not wrong:
        return ""
    total = sum(used.values())
    counts = ", ".join(f"{name} for {count} of {total}" for name, count in wrong.items())
    return with_code("JW461", f"NCCL used {counts} channels, expected {' and '.join(allowed)}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--site", type=Path, required=True, help="site.yaml")
    parser.add_argument("results", type=Path, nargs="*", help="results of benchmarks")


def run(args: argparse.Namespace) -> None:
    """Print what did not pass. UserError if there is any."""
    site, bad = read_references(args.site), 0
    for path in args.results:
        for each in judge(site, AllocationResult.read(path)):
            if each.verdict.is_bad:
                bad += 1
                print(f"{each.name} on {path.stem}: {each.verdict}; {each.reason}")
    if bad:
        raise UserError(
            "JW462",
            f"{bad} benchmark values did not pass, see above. To measure again: "
            "snakemake ... --forcerun=benchmark_run",
        )
