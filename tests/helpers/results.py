"""Results of benchmarks, made up for the tests of what reads them."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jaxway.analysis import stats
from jaxway_shared.benchmark import (
    AllocatedNodes,
    AllocationResult,
    BenchmarkResult,
    CaseResult,
    Measurement,
)
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.provenance import Provenance

DIGEST = "sha256:" + "ab" * 32
CONTAINER = ContainerRecord(
    image="docker://nvcr.io/nvidia/jax:26.06-py3",
    digest=DIGEST,
    sha256="0b" * 32,
    bytes=7,
    mtime_ns=0,
    apptainer="apptainer version 1.4.5",
    date="2026-01-01T00:00:00Z",
    labels={},
    layers=(),
)
PROVENANCE = Provenance(
    time="2026-01-02T03:04:05Z",
    container=CONTAINER,
    commit="c0ffee12",
    site="jureca",
    nodes="jrc0101",
    job=None,
    processes=1,
    devices=4,
    platform="gpu",
    device_kind="NVIDIA A100-SXM4-40GB",
    python="3.12.3",
    jax="0.10.2",
    jaxlib="0.10.2",
    numpy="2.3.5",
    backend=None,
    driver=None,
    arguments={},
)


SITE: dict[str, Any] = {
    "name": "jureca",
    "sif": "jax.sif",
    "container": True,
    "launcher": "srun",
    "scratch": "scratch",
    "platform": "cuda",
    "gpus_per_node": 4,
}


def measured(
    rounds: list[float],
    case: dict[str, Any] | None = None,
    unit: str = "GB/s",
    failed: str | None = None,
    **more: Any,
) -> CaseResult:
    """A case whose rounds have these values, each of one sample unless ``samples`` are given."""
    samples = more.pop("samples", [[value] for value in rounds])
    common: dict[str, Any] = {
        "quantity": "q",
        "unit": unit,
        "higher_is_better": True,
        "formula": "f",
    }
    common |= {"seconds": samples, "samples": samples, **stats.summary(samples)._asdict()}
    return CaseResult(case or {"kernel": "triad"}, Measurement(**common | more), failed)


def benchmark(
    *cases: CaseResult, name: str = "bench", program: str = "memory", **changes: Any
) -> BenchmarkResult:
    """A benchmark; ``changes`` are of its own fields, its provenance's or its container's."""
    own = {field.name for field in fields(BenchmarkResult)}
    common: dict[str, Any] = {"options": {}, "transports": {}, "failed": None}
    common |= {key: changes.pop(key) for key in [*changes] if key in own}
    if "provenance" not in common:
        image = {key: changes.pop(key) for key in ("image", "digest") if key in changes}
        container = replace(CONTAINER, **image)
        common["provenance"] = replace(PROVENANCE, **{"container": container, **changes})
    return BenchmarkResult(name=name, program=program, cases=[*cases], **common)


def allocation(
    *benchmarks: BenchmarkResult, nodes: int = 1, node: str | None = None
) -> AllocationResult:
    return AllocationResult(AllocatedNodes(nodes, 4, 1, node), [*benchmarks])


def write(path: Path, result: Any, indent: int | None = None) -> Path:
    """Write a result file; another ``indent`` makes it another result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.to_json(), indent=indent))
    return path
