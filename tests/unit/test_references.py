"""Verdicts on values by the site's references, and on the transports that NCCL used."""

from pathlib import Path
from typing import Any

import benchmark_collective
import benchmark_compute
import benchmark_memory
import pytest
import yaml
from jaxway import cli
from jaxway.analysis import references
from jaxway.analysis.references import Reference, SiteReferences
from jaxway_shared.benchmark import CaseResult
from jaxway_shared.errors import UserError
from results import SITE, allocation, benchmark, measured, write

ROOT = Path(__file__).parents[2]
JURECA = references.read_references(ROOT / "profiles/jureca/site.yaml")


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
    site = SiteReferences([Reference(**each) for each in expected], transports)
    (judged,) = references.judge(site, result or allocation(benchmark(measured([1400]))))
    return judged.verdict, judged.reason


@pytest.mark.parametrize("reference", JURECA.references, ids=lambda x: str(x.case))
def test_both_sides_of_each_reference(reference):
    for value, expected in (
        (reference.low * 0.999, "slow"),
        (reference.low, "pass"),
        (reference.high, "pass"),
        (reference.high * 1.001, "implausibly fast"),
    ):
        found = measured([value], reference.case | {"other": 1}, reference.unit)
        result = benchmark(found, program=reference.benchmark, transports={"P2P": 1})
        (judged,) = references.judge(JURECA, allocation(result, nodes=reference.nodes or 1))
        assert (judged.verdict, judged.reference) == (expected, reference)
        assert f", expected {reference.low:g} to {reference.high:g}" in judged.reason
        assert judged.reason.endswith("[JW460]") == judged.verdict.is_bad


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "failed"),
        ({"devices": 1}, "no reference"),
        ({"platform": "cpu"}, "no reference"),
        ({"transports": {"P2P": 1}}, "no reference"),
    ],
)
def test_log_without_transports(more, verdict):
    """Of several GPUs it names some, else nobody knows what they took."""
    (judged,) = references.judge(
        JURECA, allocation(benchmark(measured([1]), program="collective", **more))
    )
    assert judged.verdict == verdict


OPERATIONS: Any = benchmark_collective.OPTIONS["operations"]["default"]
PROGRAMS: dict[str, dict[str, list[Any]]] = {
    "collective": {
        "operation": OPERATIONS,
        "kilobytes": [4**i for i in range(1, 11)],  # as the program's own test shows
    },
    "compute": {"dtype": list(benchmark_compute.DTYPES)},
    "memory": {"kernel": list(benchmark_memory.KERNELS)},
}


@pytest.mark.parametrize("reference", JURECA.references, ids=lambda x: str(x.case))
def test_references_name_existing_cases(reference):
    labels = PROGRAMS[reference.benchmark]
    assert all(value in labels[key] for key, value in reference.case.items())
    assert benchmark_collective.LARGEST["gpu"] == labels.get("kilobytes", [4**10])[-1]
    source = (ROOT / f"workflow/scripts/benchmark_{reference.benchmark}.py").read_text()
    assert f'unit="{reference.unit}"' in source
    assert reference.low < reference.high


def test_first_matching_reference_counts():
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
def test_other_references_are_ignored(change):
    assert verdict(REFERENCE | change) == ("no reference", "")
    assert verdict(REFERENCE | change, REFERENCE)[0] == "pass"


@pytest.mark.parametrize("fact", ["device", "case"])
def test_missing_conditions_match_anything(fact):
    assert verdict({key: value for key, value in REFERENCE.items() if key != fact})[0] == "pass"


def test_device_matches_part_of_its_kind():
    assert verdict(REFERENCE | {"device": "A100"})[0] == "pass"


def test_unknown_device_has_no_reference():
    result = allocation(benchmark(measured([1400]), device_kind=None))
    assert verdict(REFERENCE, result=result)[0] == "no reference"


def test_reference_in_another_unit():
    reason = "the reference is in TB/s, not GB/s"
    assert verdict(REFERENCE | {"unit": "TB/s"}) == ("no reference", reason)


def test_site_without_references():
    (judged,) = references.judge(SiteReferences(), allocation(benchmark(measured([1400]))))
    assert judged.verdict == "no reference"


@pytest.mark.parametrize("what", ["failed", "skipped"])
def test_case_without_value(what):
    reason: dict[str, Any] = {what: "because"}
    result = allocation(benchmark(CaseResult({"kernel": "triad"}, **reason)))
    assert verdict(REFERENCE, result=result, transports=["P2P"]) == (what, "because")


def test_case_failed_in_a_later_round_has_failed():
    result = allocation(benchmark(measured([1400], failed="because")))
    assert verdict(REFERENCE, result=result) == ("failed", "because")


def test_benchmark_failed_before_its_first_value():
    result = allocation(benchmark(failed="it broke", provenance=None))
    assert verdict(REFERENCE, result=result) == ("failed", "it broke")


def test_values_of_a_failed_benchmark_are_judged():
    result = allocation(benchmark(measured([1400]), failed="it broke"))
    site = SiteReferences([Reference(**REFERENCE)])
    found = [judged.verdict for judged in references.judge(site, result)]
    assert found == ["failed", "pass"]


@pytest.mark.parametrize(
    ("allowed", "used", "wrong"),
    [
        (["P2P", "NET/IB"], {"P2P": 8, "NET/IB": 2}, ""),
        (["P2P", "NET/IB"], {}, ""),
        (None, {"SHM": 8}, ""),
        (["P2P"], {"P2P": 6, "SHM": 2}, "SHM for 2 of 8 channels, expected P2P"),
        (
            ["P2P", "NET/IB"],
            {"NET/Socket": 4, "SHM": 3, "P2P": 1},
            "NET/Socket for 4 of 8, SHM for 3 of 8 channels, expected P2P and NET/IB",
        ),
    ],
)
def test_transports(allowed, used, wrong):
    result = allocation(benchmark(measured([1400]), transports=used))
    expected = (
        ("failed", f"NCCL used {wrong} [JW461]") if wrong else ("pass", verdict(REFERENCE)[1])
    )
    assert verdict(REFERENCE, result=result, transports=allowed) == expected


def test_wrong_transport_does_not_fail_skipped_cases():
    found = [measured([1400]), CaseResult({"kernel": "add"}, skipped="no such thing")]
    result = allocation(benchmark(*found, transports={"SHM": 1}))
    verdicts = references.judge(SiteReferences(transports=["P2P"]), result)
    assert [judged.verdict for judged in verdicts] == ["failed", "skipped"]


@pytest.fixture
def check(tmp_path):
    """Run the command on results by their names."""

    def run(**results):
        site = tmp_path / "site.yaml"
        site.write_text(yaml.safe_dump(SITE | {"references": [REFERENCE]}))
        files = [write(tmp_path / f"{name}.json", result) for name, result in results.items()]
        run, args = cli.parse(["check-references", f"--site={site}", *map(str, files)])
        run(args)

    return run


def test_good_results_pass(check, capsys):
    skipped = CaseResult({"kernel": "host to device"}, skipped="because")
    check(one=allocation(benchmark(measured([1400]), skipped)), other=allocation())
    assert capsys.readouterr().out == ""


def test_bad_results_are_listed(check, capsys):
    bad = benchmark(measured([1200]), failed="it broke", name="disk")
    with pytest.raises(UserError, match="2 benchmark values did not pass, see above") as error:
        check(good=allocation(benchmark(measured([1400]))), bad=allocation(bad))
    assert error.value.code == "JW462"
    assert capsys.readouterr().out.splitlines() == [
        "disk on bad: failed; it broke",
        "disk triad on bad: slow; 1200 GB/s, expected 1285 to 1555 [JW460]",
    ]
