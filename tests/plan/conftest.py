"""A plan of its own for each test."""

from pathlib import Path

import pytest
from plan import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    result = Plan(tmp_path)
    result.configure()
    return result
