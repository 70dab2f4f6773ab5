"""Verdicts. ``allocation`` makes a result of benchmarks; other tests use it too."""

import json
import sys
from pathlib import Path
from typing import Any

import benchmark_collective
import benchmark_compute
import benchmark_memory
import pytest
import yaml
from jaxway.analysis import references, stats

ROOT = Path(__file__).parents[2]
JURECA = yaml.safe_load((ROOT / "profiles/jureca/site.yaml").read_text())
DIGEST = "sha256:" + "ab" * 32


def measured(rounds, case=None, unit="GB/s", **more):
    """A measurement whose rounds have these values, each of one sample."""
    samples = [[value] for value in rounds]
    common: dict[str, Any] = {
        "quantity": "q",
        "unit": unit,
        "higher_is_better": True,
        "formula": "f",
    }
    figures = common | {"samples": samples} | stats.summary(samples)
    return {"case": case or {"kernel": "triad"}} | figures | more


def benchmark(*measurements, name="bench", program="memory", **more):
    provenance: dict[str, Any] = {
        "time": "2026-01-02T03:04:05Z",
        "site": "jureca",
        "nodes": "jrc0101",
    }
    provenance |= {
        "platform": "gpu",
        "devices": 4,
        "device_kind": "NVIDIA A100-SXM4-40GB",
        "commit": "c0ffee12",
    }
    container = {"image": "docker://nvcr.io/nvidia/jax:26.06-py3", "digest": DIGEST}
    changed = {key: more.pop(key) for key in [*more] if key in provenance | container}
    provenance |= {key: value for key, value in changed.items() if key in provenance}
    container |= {key: value for key, value in changed.items() if key in container}
    common = {"name": name, "program": program, "options": {}, "transports": {}, "failed": None}
    provenance["container"] = container
    return common | {"provenance": provenance, "measurements": [*measurements]} | more


def allocation(*benchmarks, nodes=1, node=None):
    where = {"nodes": nodes, "gpus_per_node": 4, "node": node}
    return {"allocation": where, "benchmarks": [*benchmarks]}


REFERENCE: dict[str, Any] = {
    "benchmark": "memory",
    "device": "A100-SXM4-40GB",
    "case": {"kernel": "triad"},
    "unit": "GB/s",
    "low": 1285,
    "high": 1555,
    "source": "s",
}


def verdict(*expected, result=None, transports=None):
    """Verdict and reason of the only measurement."""
    site = {"references": [*expected], "transports": transports}
    (row,) = references.rows(site, result or allocation(benchmark(measured([1400]))))
    return row["verdict"], row["reason"]


@pytest.mark.parametrize("reference", JURECA["references"], ids=lambda x: str(x["case"]))
def test_both_sides_of_each_reference(reference):
    nodes, program = reference.get("nodes", 1), reference["benchmark"]
    for value, expected in (
        (reference["low"] * 0.999, "slow"),
        (reference["low"], "pass"),
        (reference["high"], "pass"),
        (reference["high"] * 1.001, "implausibly fast"),
    ):
        found = measured([value], reference["case"] | {"other": 1}, reference["unit"])
        taken = benchmark(found, program=program, transports={"P2P": 1})
        (row,) = references.rows(JURECA, allocation(taken, nodes=nodes))
        assert (row["verdict"], row["reference"]) == (expected, reference)
        due = f", where {reference['low']:g} to {reference['high']:g} are due"
        assert row["reason"].endswith(due) == (expected != "no reference")


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "failed"),
        ({"devices": 1}, "no reference"),
        ({"platform": "cpu"}, "no reference"),
        ({"transports": {"P2P": 1}}, "no reference"),
    ],
)
def test_a_log_without_transports(more, verdict):
    """Of several GPUs it names some, else nobody knows what they took."""
    (row,) = references.rows(
        JURECA, allocation(benchmark(measured([1]), program="collective", **more))
    )
    assert row["verdict"] == verdict


OPERATIONS: Any = benchmark_collective.OPTIONS["operations"]["default"]
PROGRAMS: dict[str, dict[str, list[Any]]] = {
    "collective": {
        "operation": OPERATIONS,
        "kilobytes": [4**i for i in range(1, 11)],  # as the program's own test shows
    },
    "compute": {"dtype": list(benchmark_compute.DTYPES)},
    "memory": {"kernel": list(benchmark_memory.KERNELS)},
}


@pytest.mark.parametrize("reference", JURECA["references"], ids=lambda x: str(x["case"]))
def test_references_are_of_cases_that_there_are(reference):
    labels = PROGRAMS[reference["benchmark"]]
    assert all(value in labels[key] for key, value in reference["case"].items())
    assert benchmark_collective.LARGEST["gpu"] == labels.get("kilobytes", [4**10])[-1]
    source = (ROOT / f"workflow/scripts/benchmark_{reference['benchmark']}.py").read_text()
    assert f'unit="{reference["unit"]}"' in source
    assert reference["low"] < reference["high"]


def test_the_first_reference_that_matches_counts():
    wide = REFERENCE | {"low": 1, "high": 2000}
    assert verdict(wide, REFERENCE | {"low": 1500})[0] == "pass"
    assert verdict(REFERENCE | {"low": 1500}, wide)[0] == "slow"


@pytest.mark.parametrize(
    "change",
    [
        {"benchmark": "compute"},
        {"device": "A100-SXM4-80GB"},
        {"case": {"kernel": "copy"}},
        {"case": {"kernel": "triad", "size": 1}},
        {"nodes": 2},
        {"gpus_per_node": 1},
    ],
)
def test_references_of_something_else(change):
    assert verdict(REFERENCE | change) == ("no reference", "")
    assert verdict(REFERENCE | change, REFERENCE)[0] == "pass"


@pytest.mark.parametrize("fact", ["device", "case"])
def test_what_a_reference_does_not_name_may_be_anything(fact):
    assert verdict({key: value for key, value in REFERENCE.items() if key != fact})[0] == "pass"


def test_a_device_is_named_by_a_part_of_its_kind():
    assert verdict(REFERENCE | {"device": "A100"})[0] == "pass"


def test_a_device_that_is_not_known_has_no_reference():
    result = allocation(benchmark(measured([1400]), device_kind=None))
    assert verdict(REFERENCE, result=result)[0] == "no reference"


def test_another_unit():
    reason = "the reference is in TB/s, not GB/s"
    assert verdict(REFERENCE | {"unit": "TB/s"}) == ("no reference", reason)


def test_no_references_at_all():
    (row,) = references.rows({}, allocation(benchmark(measured([1400]))))
    assert row["verdict"] == "no reference"


@pytest.mark.parametrize("what", ["failed", "skipped"])
def test_a_case_without_a_value(what):
    result = allocation(benchmark({"case": {"kernel": "triad"}, what: "because"}))
    assert verdict(REFERENCE, result=result, transports=["P2P"]) == (what, "because")


def test_a_case_that_failed_in_a_later_round_has_failed():
    result = allocation(benchmark(measured([1400], failed="because")))
    assert verdict(REFERENCE, result=result) == ("failed", "because")


def test_a_benchmark_that_failed_before_its_first_value():
    result = allocation(benchmark(failed="it broke", provenance=None))
    assert verdict(REFERENCE, result=result) == ("failed", "it broke")


def test_values_of_a_benchmark_that_failed_are_judged():
    result = allocation(benchmark(measured([1400]), failed="it broke"))
    found = [row["verdict"] for row in references.rows({"references": [REFERENCE]}, result)]
    assert found == ["failed", "pass"]


@pytest.mark.parametrize(
    ("allowed", "taken", "said"),
    [
        (["P2P", "NET/IB"], {"P2P": 8, "NET/IB": 2}, ""),
        (["P2P", "NET/IB"], {}, ""),
        (None, {"SHM": 8}, ""),
        (["P2P"], {"P2P": 6, "SHM": 2}, "SHM for 2 of 8 channels, where P2P are expected"),
        (
            ["P2P", "NET/IB"],
            {"NET/Socket": 4, "SHM": 3, "P2P": 1},
            "NET/Socket for 4 of 8, SHM for 3 of 8 channels, where P2P and NET/IB are expected",
        ),
    ],
)
def test_transports(allowed, taken, said):
    result = allocation(benchmark(measured([1400]), transports=taken))
    expected = ("failed", f"NCCL took {said}") if said else ("pass", verdict(REFERENCE)[1])
    assert verdict(REFERENCE, result=result, transports=allowed) == expected


def test_a_wrong_transport_fails_no_case_that_was_skipped():
    found = [measured([1400]), {"case": {"kernel": "add"}, "skipped": "no such thing"}]
    result = allocation(benchmark(*found, transports={"SHM": 1}))
    site = {"transports": ["P2P"]}
    assert [row["verdict"] for row in references.rows(site, result)] == ["failed", "skipped"]


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Run the program on results by their names; what it ends with."""

    def run(**results):
        site = tmp_path / "site.yaml"
        site.write_text(yaml.safe_dump({"references": [REFERENCE]}))
        files = [tmp_path / f"{name}.json" for name in results]
        for file, result in zip(files, results.values(), strict=True):
            file.write_text(json.dumps(result))
        monkeypatch.setattr(sys, "argv", ["verdicts.py", f"--site={site}", *map(str, files)])
        references.main()

    return run


def test_the_program_is_content(judge, capsys):
    skipped = {"case": {"kernel": "host to device"}, "skipped": "because"}
    judge(one=allocation(benchmark(measured([1400]), skipped)), other=allocation())
    assert capsys.readouterr().out == ""


def test_the_program_says_what_is_wrong_and_where(judge):
    bad = benchmark(measured([1200]), failed="it broke", name="disk")
    with pytest.raises(SystemExit) as stop:
        judge(good=allocation(benchmark(measured([1400]))), bad=allocation(bad))
    # A text as the code of a SystemExit is printed, and the exit code is 1.
    assert str(stop.value.code).splitlines() == [
        "disk on bad: failed; it broke",
        "disk triad on bad: slow; 1200 GB/s, where 1285 to 1555 are due",
        "When it is mended, or to measure again: snakemake ... --forcerun=benchmark_run",
    ]
