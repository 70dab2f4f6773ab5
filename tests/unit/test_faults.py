"""Faults that benchmarks/mutants.py plants again (benchmarks/faults.yaml) are of today's code."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FAULTS = yaml.safe_load((ROOT / "benchmarks/faults.yaml").read_text())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["fault"].partition(",")[0])
def test_planted_fault_is_of_code_and_a_test_that_are_there(fault: dict[str, str]) -> None:
    lines = (ROOT / fault["file"]).read_text()
    assert re.search(f"^{re.escape(fault['old'])}$", lines, re.MULTILINE)
    assert fault["new"] != fault["old"]
    file, _, name = fault["test"].partition("::")
    function = name or r"test_\w+"
    assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE)
