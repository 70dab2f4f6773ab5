"""The values of benchmarks that the report shows, each with its verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxway_shared.benchmark import AllocationResult, GpuStats, Measurement

from jaxway.analysis import references
from jaxway.analysis.references import JudgedCase, SiteReferences, Verdict

VERDICT_TEXTS = {
    Verdict.PASS: "passed",
    Verdict.SLOW: "slow",
    Verdict.IMPLAUSIBLE: "implausibly fast",
    Verdict.FAILED: "failed",
    Verdict.NO_REFERENCE: "without reference",
    Verdict.SKIPPED: "skipped",
}


@dataclass(frozen=True)
class Entry:
    """A judged case of a benchmark, and the name of its allocation."""

    judged: JudgedCase
    allocation: str
    title: str  # its name, with the allocation where there are several

    @property
    def name(self) -> str:
        return self.judged.name

    @property
    def case(self) -> dict[str, Any]:
        return self.judged.case

    @property
    def verdict(self) -> Verdict:
        return self.judged.verdict

    @property
    def verdict_css(self) -> str:
        """Class of the verdict in the page."""
        return "good" if self.verdict == Verdict.PASS else "bad" if self.verdict.is_bad else ""

    @property
    def reason(self) -> str:
        return self.judged.reason

    @property
    def benchmark(self) -> str:
        return self.judged.benchmark.name

    @property
    def program(self) -> str:
        return self.judged.benchmark.program

    @property
    def options(self) -> dict[str, Any]:
        return self.judged.benchmark.options

    @property
    def node_count(self) -> int:
        return self.judged.nodes.nodes

    @property
    def devices(self) -> int:
        provenance, nodes = self.judged.benchmark.provenance, self.judged.nodes
        return provenance.devices if provenance else nodes.nodes * nodes.gpus_per_node

    @property
    def site(self) -> str | None:
        provenance = self.judged.benchmark.provenance
        return provenance.site if provenance else None

    @property
    def nodes(self) -> str | None:
        """List of nodes."""
        provenance = self.judged.benchmark.provenance
        return provenance.nodes if provenance else None

    @property
    def measurement(self) -> Measurement | None:
        return self.judged.measurement

    @property
    def has_value(self) -> bool:
        """Whether it has a value: one that failed has none, whatever its other rounds found."""
        return self.measurement is not None and self.verdict != Verdict.FAILED

    @property
    def value(self) -> Measurement:
        """The measurement of an entry that has one."""
        assert self.measurement
        return self.measurement

    @property
    def samples(self) -> list[float]:
        """Samples of all rounds."""
        return [x for part in self.value.samples for x in part]

    @property
    def gpu(self) -> GpuStats | None:
        return self.measurement.gpu if self.measurement else None

    @property
    def slowest(self) -> float | None:
        """How far the slowest device is from the median, as a share; None, of one device."""
        devices = (self.measurement and self.measurement.per_device) or []
        return float(min(devices) / np.median(devices) - 1) if len(devices) > 1 else None

    @property
    def range(self) -> tuple[float, float] | None:
        """The range of its reference."""
        reference = self.judged.reference
        return (reference.low, reference.high) if reference else None

    @property
    def source(self) -> str | None:
        """The source of its reference."""
        return self.judged.reference.source if self.judged.reference else None


def entries_of(site: SiteReferences, results: dict[str, AllocationResult]) -> list[Entry]:
    """An entry for each value of the results, which are named by their allocations."""
    judged = [
        (each, name) for name, result in results.items() for each in references.judge(site, result)
    ]
    several = len({name for _, name in judged}) > 1
    return [Entry(x, name, f"{x.name}, {name}" if several else x.name) for x, name in judged]


@dataclass(frozen=True)
class Overview:
    """How many values have which verdict, and those that are bad."""

    text: str
    css: str
    bad: list[Entry]


def overview(entries: Sequence[Entry]) -> Overview:
    """Count the verdicts."""
    counts = Counter(entry.verdict for entry in entries)
    bad = [entry for entry in entries if entry.verdict.is_bad]
    texts = [f"{counts[x]} {text}" for x, text in VERDICT_TEXTS.items() if counts[x]]
    css = "bad" if bad else "good" if counts[Verdict.PASS] else ""
    return Overview(", ".join(texts), css, bad)
