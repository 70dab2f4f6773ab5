"""Benchmarks: what a job has to run, what a program finds in a round, and the job's result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared import versioned
from jaxway_shared.provenance import Provenance

SCHEMA_VERSION = 2
# What benchmark_train measures unless options say it: preset, vocabulary, type of activations.
TRAINED = {"cpu": ("tiny", 256, "float32"), "gpu": ("124M", 50304, "bfloat16")}
Case = dict[str, str | int | float | None]  # as {"dtype": "float32", "shape": "1024x1024x1024"}


@dataclass(frozen=True)
class AllocatedNodes:
    """What the benchmarks of one job run on; ``node`` is the name of one that was asked for."""

    nodes: int
    gpus_per_node: int
    processes_per_node: int
    node: str | None = None


@dataclass(frozen=True)
class PlannedBenchmark:
    """A benchmark and the command line that runs one round of it."""

    name: str
    program: str
    options: dict[str, Any]
    rounds: int
    timeout_minutes: float
    command: str


@dataclass(frozen=True)
class BenchmarkPlan:
    """What the job of an allocation runs."""

    allocation: AllocatedNodes
    benchmarks: list[PlannedBenchmark]

    @classmethod
    def read(cls, path: Path) -> "BenchmarkPlan":
        return versioned.read_as(cls, path, "plan of benchmarks", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        return versioned.encode(self, SCHEMA_VERSION)


@dataclass(frozen=True)
class ErrorCheck:
    """Worst error of a result, and the largest that is allowed."""

    error: float
    tolerance: float


@dataclass(frozen=True)
class GpuStats:
    """GPUs while samples were taken; None, the driver does not report it."""

    clock_mhz_min: float | None = None
    clock_mhz: float | None = None  # median
    power_w: float | None = None  # median of one GPU
    temperature_c: float | None = None  # highest
    throttle_reasons: list[str] | None = None
    energy_j_per_call: float | None = None  # of all GPUs


@dataclass(frozen=True)
class LossChange:
    """Loss of training before the first step and after the last one."""

    unit: str
    first: float
    last: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one device: what the compiled program needs; the most that its process has used, and
    may use, both None on a CPU."""

    compiled: int
    peak: int | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a measurement is of. From ``bytes`` on: not every program has it."""

    quantity: str
    unit: str
    higher_is_better: bool
    formula: str  # how samples follow from seconds, t
    check: ErrorCheck | None = None
    gpu: GpuStats | None = None
    per_device: list[float] | None = None  # medians, where each device is measured alone
    bytes: int | None = None  # of a message
    intensity: float | None = None  # FLOP per byte
    flops_per_unit: float | None = None  # TFLOP/s per unit of the samples
    tokens_per_call: int | None = None
    model_tflops_per_device: float | None = None
    mfu: float | None = None
    mfu_causal: float | None = None
    loss: LossChange | None = None
    memory: MemoryUse | None = None


@dataclass(frozen=True, kw_only=True)
class RoundMeasurement(Description):
    """Samples of one round: seconds of one call, and values in ``unit``."""

    seconds: list[float]
    samples: list[float]


@dataclass(frozen=True, kw_only=True)
class Measurement(Description):
    """Samples of all rounds, a list for each round, and what they say together, in ``unit``."""

    seconds: list[list[float]]
    samples: list[list[float]]
    rounds: list[float]  # median of each round
    median: float  # of rounds
    interval: tuple[float, float] | None  # 95 % interval of the median; None, too few rounds
    min: float
    p95: float
    max: float


@dataclass(frozen=True)
class RoundCase:
    """A case in one round: a measurement, or the reason why it failed or was skipped."""

    case: Case
    measurement: RoundMeasurement | None = None
    failed: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class CaseResult:
    """A case in all rounds. One that failed in any round has failed, and keeps its other rounds."""

    case: Case
    measurement: Measurement | None = None
    failed: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class BenchmarkRound:
    """What a program finds in one round."""

    provenance: Provenance
    transports: dict[str, int]  # NCCL's channels by transport
    cases: list[RoundCase]

    @classmethod
    def read(cls, path: Path) -> "BenchmarkRound":
        return versioned.read_as(cls, path, "round of a benchmark", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        return versioned.encode(self, SCHEMA_VERSION)


@dataclass(frozen=True)
class BenchmarkResult:
    """All rounds of a benchmark; ``failed`` is why its program was not started again."""

    name: str
    program: str
    options: dict[str, Any]
    provenance: Provenance | None  # of the first round; None, there was none
    transports: dict[str, int]
    failed: str | None
    cases: list[CaseResult]


@dataclass(frozen=True)
class AllocationResult:
    """Results of all benchmarks that shared a job."""

    allocation: AllocatedNodes
    benchmarks: list[BenchmarkResult]

    @classmethod
    def read(cls, path: Path) -> "AllocationResult":
        return versioned.read_as(cls, path, "result of benchmarks", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        return versioned.encode(self, SCHEMA_VERSION)
