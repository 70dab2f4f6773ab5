"""Files of a training: the state that survives its jobs, and the results.

Programs write them through jaxway_job.training_state; the plan, the monitor, the accounting and
the report read them here. A state is a folder with these files, a summary and metrics; the report
gets copies of these two.

The number in ``last_checkpoint_step`` decides whether the next job of a training is submitted: only
if it has grown, and only if there is no file ``error``. That one holds the sentence with which the
program gave up, since the next job would fail as well.
"""

import fcntl
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared import versioned
from jaxway_shared.data_record import DataRecord
from jaxway_shared.provenance import Provenance

SCHEMA_VERSION = 2  # of segments.json
SUMMARY_VERSION = 3
LAST_CHECKPOINT_STEP = "last_checkpoint_step"
ERROR = "error"
LOCK = "lock"
SEGMENTS = "segments.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"  # folder
TRACE = "trace"  # folder
LOG = "log"  # of the last job, of a finished training
NOT_AGAIN = "nothing is trained again"
ORIGIN_RE = re.compile(r"(.+?)(?:@(\d+|best))?", re.DOTALL)
LOCK_OWNER_RE = re.compile(r"host (.+), process (\d+), job (.+)")


@dataclass(frozen=True)
class LockOwner:
    """The process that writes a state, as its lock file names it, also after its end."""

    host: str
    process: int
    job: str  # Slurm's id; "none" outside Slurm

    def __str__(self) -> str:
        """Content of the lock file."""
        return f"host {self.host}, process {self.process}, job {self.job}"

    @classmethod
    def parse(cls, text: str) -> "LockOwner | None":
        """The owner that a lock file names; None, it names none."""
        found = LOCK_OWNER_RE.fullmatch(text.strip())
        return cls(found[1], int(found[2]), found[3]) if found else None


@dataclass(frozen=True)
class TrainingState:
    """What decides whether the next job of a training is submitted."""

    folder: Path
    last_checkpoint_step: int | None  # None, no checkpoint yet
    error: str | None  # why the program gave up; None, it has not

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        """The state in a folder. OSError where a file cannot be read."""
        step = text_of(folder / LAST_CHECKPOINT_STEP) or ""
        error = text_of(folder / ERROR)
        return cls(
            folder=folder,
            last_checkpoint_step=int(step) if step.isdecimal() else None,
            # Left empty by a full disk.
            error=error if error != "" else "it gave up, and its reason could not be written",
        )

    @classmethod
    def find(cls, link: Path) -> "TrainingState | None":
        """The state to which a link leads that a program has made; None where there is none."""
        try:
            return cls.read(link.resolve(strict=True))
        except FileNotFoundError:
            return None

    def writer(self) -> str | None:
        """Who writes it now, on whatever node, by its lock; None: nobody, or it cannot be known."""
        with suppress(OSError), (self.folder / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another job"
        return None


def is_due(step: int, every: int | None) -> bool:
    """Whether what is done every so many steps is done after this one."""
    return every is not None and step % every == 0


def checkpoint_steps(state: Path) -> list[int]:
    """Steps of the finished checkpoints in a state."""
    names = (path.name for path in (state / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def split_origin(name: str) -> tuple[str, str | None]:
    """What a training's option `from` names: a run, or with a / a state, and `best` or a step."""
    found = ORIGIN_RE.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def text_of(path: Path) -> str | None:
    """Content of a file without white space around it; None where there is no file."""
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


# --------------------------------------------------------------------------------------- segments


@dataclass(frozen=True)
class Segment:
    """What one job of a training did, up to its newest checkpoint."""

    first_step: int
    last_step: int  # that of its newest checkpoint; below first_step, there is none
    seconds: float  # from its start to that checkpoint
    provenance: Provenance
    startup: dict[str, float] | None = None  # seconds that each part of its start took
    save_seconds: float | None = None  # that its longest checkpoint took


@dataclass(frozen=True)
class Segments:
    """Content of segments.json: a training's jobs, oldest first."""

    segments: tuple[Segment, ...]

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return versioned.encode(self, SCHEMA_VERSION)


def read_segments(folder: Path) -> tuple[Segment, ...]:
    """The jobs of the training in this state. UserError where the file is not what it should be."""
    try:
        file = folder / SEGMENTS
        return versioned.read_as(Segments, file, "list of segments", SCHEMA_VERSION).segments
    except FileNotFoundError:
        return ()


# ---------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True)
class MetricsLine:
    """A line of metrics.jsonl: its step, and all numbers that it has.

    A program of the user's own writes what it likes, with ``step``, so a line has no version.
    """

    step: int
    numbers: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> "MetricsLine":
        """A line. ValueError unless it is an object of JSON with an integer ``step``."""
        content = json.loads(text)
        if not isinstance(content, dict) or type(content.get("step")) is not int:
            raise ValueError("a line is no JSON object with an integer `step`")
        numbers = {
            name: value
            for name, value in content.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        return cls(content["step"], numbers)


def metrics_text(file: Path) -> list[str]:
    """Lines of metrics as they are written, without a last one that a kill cut short."""
    try:
        lines = file.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.endswith("\n")]


def read_metrics(file: Path) -> list[MetricsLine]:
    """All lines of metrics. ValueError where one is none."""
    return [MetricsLine.parse(line) for line in metrics_text(file)]


def best_step(lines: Iterable[MetricsLine]) -> int | None:
    """The step after which the validation's loss was least; None, there was no validation."""
    losses = [
        (x.numbers["validation_loss"], x.step) for x in lines if "validation_loss" in x.numbers
    ]
    return min(losses)[1] if losses else None


# ---------------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class TrainingSummary:
    """The result of every training."""

    program: str
    steps: int | None  # None: a program of the user's own that wrote none
    seconds: float  # sum over the segments
    tokens_per_second: float | None  # median over the lines of metrics
    provenance: Provenance  # of the last segment
    segments: tuple[Segment, ...]

    def to_json(self) -> dict[str, Any]:
        """Content of summary.json."""
        return versioned.encode(self, SUMMARY_VERSION)


@dataclass(frozen=True)
class ProgramSummary(TrainingSummary):
    """The result of a training by a program that is not ours."""

    command: tuple[str, ...]  # the words that were run
    loss: float | None  # of the last line of metrics; None, not known


@dataclass(frozen=True)
class ModelSummary(TrainingSummary):
    """The result of a training by train.py; docs/output.md has units and meanings."""

    parameters: int
    flops_per_token: int
    data: DataRecord
    train_nats_per_token: float
    validation_nats_per_token: float
    train_bits_per_byte: float | None  # None with a tokenizer that loses text
    validation_bits_per_byte: float | None
    unigram_bits_per_byte: float
    gzip_bits_per_byte: float
    mfu: float | None
    mfu_causal: float | None
    sample: str | None  # text that the model wrote; None with a tokenizer
    sample_tokens: tuple[int, ...] = ()  # the same as tokens


def read_summary(file: Path) -> ModelSummary | ProgramSummary:
    """A training's summary. UserError where the file is none; OSError where there is no file."""
    kind = "training's summary"
    if versioned.read(file, kind, SUMMARY_VERSION).get("program") == "train":
        return versioned.read_as(ModelSummary, file, kind, SUMMARY_VERSION)
    return versioned.read_as(ProgramSummary, file, kind, SUMMARY_VERSION)
