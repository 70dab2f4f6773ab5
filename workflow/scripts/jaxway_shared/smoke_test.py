"""The smoke test's result: whether JAX works here, and each check that it made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxway_shared import versioned
from jaxway_shared.provenance import Provenance

SCHEMA_VERSION = 2


class Outcome(NamedTuple):
    """What a check measured, what is expected, and whether they agree."""

    measured: str
    expected: str
    passed: bool


@dataclass(frozen=True)
class Check:
    """A check; ``meaning`` says what its failure means and what to do, None if it passed."""

    name: str
    passed: bool
    measured: str
    expected: str
    meaning: str | None = None


@dataclass(frozen=True)
class SmokeTestResult:
    """All checks, and the versions of software; None, it is missing."""

    provenance: Provenance | None  # None, JAX found no devices
    passed: bool
    checks: list[Check]
    versions: dict[str, str | None]

    @classmethod
    def read(cls, path: Path) -> "SmokeTestResult":
        return versioned.read_as(cls, path, "smoke test's result", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        return versioned.encode(self, SCHEMA_VERSION)
