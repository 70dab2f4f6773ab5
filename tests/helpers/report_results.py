"""A report made from results that are made up here, and what its tests share."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import results
import yaml
from example_records import data_record
from jaxway import cli
from jaxway.analysis import stats
from jaxway_shared.benchmark import (
    AllocatedNodes,
    AllocationResult,
    BenchmarkResult,
    CaseResult,
    ErrorCheck,
    GpuStats,
    Measurement,
)
from jaxway_shared.smoke_test import Check, SmokeTestResult
from jaxway_shared.training import METRICS, ModelSummary, Segment
from results import SITE, write

PROVENANCE = replace(
    results.PROVENANCE,
    time="2026-11-22T16:51:39Z",
    container=replace(
        results.CONTAINER,
        image="docker://nvcr.io/nvidia/jax:24.10-maxtext-py3",
        digest="sha256:" + "0a" * 32,
    ),
    commit="3f2c" * 10,
    site="profiles/jureca",
    job="14000001",
    python="3.10.12",
    jax="0.4.33",
    jaxlib="0.4.33",
    numpy="1.26.4",
    backend="PJRT C API cuda 12060",
    driver="570.86.15",
    arguments={"out": "x", "global_batch": 16, "context": 128, "data": ["python", "more"]},
)
SMOKE_TEST = SmokeTestResult(
    provenance=PROVENANCE,
    passed=True,
    checks=[Check("jit", True, "error 0", "error 0")],
    versions={"python": "3.10.12", "optax": "0.2.3", "driver": None},
)
SEGMENT = Segment(first_step=1, last_step=100, seconds=60.5, provenance=PROVENANCE)
DATA = data_record(
    documents=1,
    shards=(10**7,),
    train_tokens=10**7,
    train_bytes=10**7,
    validation_tokens=10**5,
    validation_bytes=10**5,
    unigram_bits_per_byte=4.7,
    sha256="0c" * 32,
    folder="data",
)
SUMMARY = ModelSummary(
    program="train",
    provenance=PROVENANCE,
    steps=100,
    parameters=1234567,
    flops_per_token=7000000,
    data=DATA,
    train_nats_per_token=1.3,
    validation_nats_per_token=1.4,
    train_bits_per_byte=1.9,
    validation_bits_per_byte=2.0,
    unigram_bits_per_byte=4.7,
    gzip_bits_per_byte=2.5,
    tokens_per_second=123456.7,
    mfu=0.421,
    mfu_causal=0.4,
    seconds=60.5,
    sample="def f():\n",
    segments=(SEGMENT,),
)
JOB_PAGES = "https://jobs.example.org/"
FLOAT32 = {"dtype": "float32", "shape": "8192x8192x8192"}
GPU = GpuStats(
    clock_mhz_min=1275,
    clock_mhz=1410,
    power_w=391.5,
    temperature_c=61,
    throttle_reasons=["power limit"],
    energy_j_per_call=32.0,
)
REFERENCE = {
    "benchmark": "compute",
    "case": {"dtype": "float32"},
    "unit": "TFLOP/s",
    "low": 17.0,
    "high": 19.5,
    "source": "NVIDIA's data sheet",
}


def measurement(
    case: dict[str, Any],
    median: float = 18.5,
    rounds: int = 10,
    failed: str | None = None,
    **changes: Any,
) -> CaseResult:
    """A case of a matrix product, or whatever ``changes`` make of it."""
    middle = (rounds - 1) / 2
    samples = [
        [median * (1 + (k - middle) / 1000 + j / 100) for j in (-1, 0, 1)] for k in range(rounds)
    ]
    found: dict[str, Any] = {
        "quantity": "throughput per device",
        "unit": "TFLOP/s",
        "higher_is_better": True,
        "formula": "2 m n k / t",
        "check": ErrorCheck(1.5e-6, 5e-6),
        "seconds": samples,
        "samples": samples,
        **stats.summary(samples)._asdict(),
        "median": median,
        **changes,
    }
    return CaseResult(case, Measurement(**found), failed)


def bandwidth(
    kernel: str, median: float, intensity: float | None = None, formula: str = "3 S / t"
) -> CaseResult:
    return measurement(
        {"kernel": kernel},
        median,
        quantity="bandwidth per device",
        unit="GB/s",
        formula=formula,
        intensity=intensity,
        flops_per_unit=intensity and intensity / 1000,
    )


def busbw(operation: str, size: int, median: float) -> CaseResult:
    case = {"operation": operation, "kilobytes": size // 1024}
    changes: dict[str, Any] = {"quantity": "busbw", "unit": "GB/s", "bytes": size}
    return measurement(case, median, formula="S / t * 1.5", **changes)


def tokens(median: float, **changes: Any) -> CaseResult:
    more: dict[str, Any] = {"quantity": "training throughput", "unit": "tokens/s"}
    more |= {"tokens_per_call": 8192, "model_tflops_per_device": 98.7}
    more |= {"mfu": 0.316, "mfu_causal": 0.301}
    return measurement({"preset": "124M"}, median, **more | changes)


def benchmark(
    program: str, cases: list[CaseResult], name: str | None = None, **changes: Any
) -> BenchmarkResult:
    common: dict[str, Any] = {
        "options": {"warmup": 1, "repeats": 3},
        "provenance": PROVENANCE,
        "transports": {},
        "failed": None,
    }
    return BenchmarkResult(name=name or program, program=program, cases=cases, **common | changes)


class WellFormed(HTMLParser):
    """Asserts that every element is closed in its turn, and collects addresses and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag != "script"
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if "href" in name or "src" in name]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class Results:
    """A folder of result files, and the report made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train: list[Path] = []
        self.benchmark: list[Path] = []
        self.smoke_test = write(folder / "smoke_test.json", SMOKE_TEST)
        self.site = folder / "site.yaml"
        self.site.write_text(yaml.safe_dump(SITE | {"references": [REFERENCE]}))
        self.history = folder / "history"
        self.more: list[str] = []

    def add_run(self, name: str = "base", losses: Any = (8, 4, 2), **changes: Any) -> None:
        """A training with these losses, in bits per byte, every 20 steps."""
        self.train.append(
            write(self.folder / f"train/{name}/summary.json", replace(SUMMARY, **changes))
        )
        nats = [math.log(2) * bits for bits in losses]
        lines = [json.dumps({"step": 20 * k, "loss": y}) + "\n" for k, y in enumerate(nats, 1)]
        self.train[-1].with_name(METRICS).write_text("".join(lines))

    def add(
        self, *benchmarks: BenchmarkResult, nodes: int = 1, gpus: int = 4, name: str | None = None
    ) -> Path:
        """The result of an allocation."""
        on_all = [
            replace(each, provenance=replace(each.provenance, devices=nodes * gpus))
            if each.provenance
            else each
            for each in benchmarks
        ]
        result = AllocationResult(AllocatedNodes(nodes, gpus, 1), on_all)
        path = write(self.folder / f"benchmark/{name or f'{nodes}x{gpus}'}.json", result)
        self.benchmark = [*dict.fromkeys([*self.benchmark, path])]
        return path

    def report(self) -> str:
        """The page's body, after what must hold for every page."""
        out = self.folder / "report.html"
        words = ["report", f"--out={out}", f"--smoke-test={self.smoke_test}"]
        words += ["--train", *map(str, self.train), "--benchmark", *map(str, self.benchmark)]
        words += [f"--site={self.site}", f"--history={self.history}", *self.more]
        run, args = cli.parse(words)
        run(args)
        assert not list(self.folder.glob("*.part"))
        text = out.read_text()
        html = WellFormed()
        html.feed(text)
        assert not html.open
        assert len(html.ids) == len(set(html.ids))
        inside = [a for a in html.addresses if not a.startswith(JOB_PAGES)]
        assert all(a[0] == "#" and a[1:] in html.ids for a in inside)
        # Nothing comes from elsewhere, in CSS either, and every colour of a plot is a variable.
        assert not re.search(r"url\(|@import|xmlns", text)
        body = text[text.index("<body") :]
        assert not re.search(r"(fill|stroke): #", body)
        assert not re.search(r"\b(nan|inf|Undefined|None|np\.float64)\b", body)
        return body


def header(text: str) -> str:
    """The top of the page."""
    return text[: text.index("</header>")]


def section(text: str, begin: str, end: str = "</section>") -> str:
    """The part of the page from a text on."""
    return begin + text.partition(begin)[2].partition(end)[0]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a part of the page, as lists of plain text."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in found]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in cells]
