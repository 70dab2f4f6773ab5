"""What a check finds."""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from jaxway_shared.errors import with_code


class Status(Enum):
    """PASS: all is well. WARN: not known, or good to know. FAIL: the plan cannot run."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


PASS, WARN, FAIL = Status.PASS, Status.WARN, Status.FAIL


class Finding(NamedTuple):
    """What one check has found. ``code``: of a FAIL. Who runs the check fills in its subject."""

    status: Status
    message: str
    code: str = ""
    subject: str = ""

    def __str__(self) -> str:
        """A line of a list."""
        message = with_code(self.code, self.message) if self.code else self.message
        return f"{self.status.value:5}{self.subject:12}{message}"


Findings = Iterator[Finding]


def passed(message: str) -> Finding:
    return Finding(PASS, message)


def warning(message: str) -> Finding:
    return Finding(WARN, message)


def failure(code: str, message: str) -> Finding:
    return Finding(FAIL, message, code)


def unchecked(error: Exception) -> Finding:
    """A check that fails itself stops no run."""
    return warning(f"could not be checked: {error!r}")


def and_more(labels: list[str]) -> str:
    """The first of some jobs, and how many more there are."""
    return labels[0] + (f" and {len(labels) - 1} more" if labels[1:] else "")
