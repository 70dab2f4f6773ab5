"""The formula of a step's memory, against XLA's compiler.

Its figures are in compiled.jsonl, which benchmarks/step_memory.py makes.
"""

import json
from pathlib import Path

import pytest
from jaxway.steps import formula
from jaxway.steps.formula import ERROR, estimate
from jaxway.steps.step import step_of

CASES = [
    json.loads(line) for line in Path(__file__).with_name("compiled.jsonl").read_text().splitlines()
]


def ratio(case) -> float:
    """The formula's figure by the compiler's."""
    step = step_of(*(case[k] for k in ("options", "vocabulary", "gpu", "nodes", "gpus_per_node")))
    return estimate(step) / case["memory"]


def name_of(case) -> str:
    devices = f"{case['nodes']} x {case['gpus_per_node']} {case['gpu']}"
    return ", ".join([devices, *(f"{name} {value}" for name, value in case["options"].items())])


def test_there_are_many_settings():
    assert len({name_of(case) for case in CASES}) >= 50


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_formula_is_near_the_compiler(case):
    assert ratio(case) == pytest.approx(1, abs=ERROR)


@pytest.mark.parametrize(
    "part", ["logits", "head", "kept", "weights", "accumulated", "backward", "scores"]
)
def test_formula_without_a_part_is_found(part, monkeypatch):
    monkeypatch.setattr(formula, part, lambda step: 0)
    assert any(abs(ratio(case) - 1) > ERROR for case in CASES)
