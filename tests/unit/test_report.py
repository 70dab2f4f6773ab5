"""The report as a whole: its head, provenance, and what it does with damaged results."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from jaxway.analysis.node_check import NodeCheck, NodeValue, Problem
from jaxway.report import plots
from jaxway_shared.benchmark import CaseResult
from jaxway_shared.errors import UserError
from jaxway_shared.smoke_test import Check
from report_results import (
    FLOAT32,
    GPU,
    PROVENANCE,
    SEGMENT,
    SMOKE_TEST,
    Results,
    bandwidth,
    benchmark,
    busbw,
    header,
    measurement,
)
from results import write


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_runs_as_a_program_on_empty_lists(results):
    out = results.folder / "new" / "report.html"
    command = [sys.executable, "-W", "error", "-m", "jaxway", "report", f"--out={out}"]
    command += [f"--smoke-test={results.smoke_test}", "--train=-", "--benchmark"]
    command += [f"--site={results.site}", f"--history={results.history}"]
    subprocess.run(command, input=b"\n", check=True)
    text = out.read_text()
    assert "No training was configured." in text
    assert "No benchmark was configured." in text


def test_head_and_provenance(results):
    results.add_run()
    results.add(benchmark("compute", [measurement(FLOAT32)]))
    text = results.report()
    assert "1 training and 1 benchmark on jureca, NVIDIA A100-SXM4-40GB." in text
    assert "Smoke test passed: 1 of 1 checks." in text
    for value in ("sha256:" + "0a" * 32, "0b" * 32, "3f2c" * 10, "14000001", "570.86.15", "0.2.3"):
        assert value in text
    assert 'class="warning' not in text
    assert "python, more" in text  # a list among the settings


def test_failed_smoke_test_without_devices(results):
    failed = Check("jit", False, "no GPU", "4", meaning="Ask.")
    write(results.smoke_test, replace(SMOKE_TEST, passed=False, checks=[failed], provenance=None))
    text = results.report()
    assert "Smoke test failed: 0 of 1 checks." in text
    assert "Ask." in text


def test_names_are_text(results):
    evil = "<b>$\\frac{a}{b$ & \"'"
    case: dict[str, Any] = {"dtype": evil, "shape": evil}
    bad = CaseResult({"dtype": evil}, failed=evil)
    changes: dict[str, Any] = {"quantity": evil, "unit": evil, "formula": evil}
    gpu = replace(GPU, throttle_reasons=[evil])
    on_roof = measurement({"dtype": evil}, intensity=9.0, flops_per_unit=1.0)
    found = [measurement(case, gpu=gpu, **changes), bad, on_roof]
    results.add(
        benchmark("compute", found, evil),
        benchmark("memory", [bandwidth(evil, 1400.0)]),
        benchmark("collective", [busbw(evil, 2**k, 1.0) for k in (9, 12)]),
        name="<b>&",
    )
    value = NodeValue(evil, case, evil, evil, True, {evil: 1.0}, [], 1.0)
    check = NodeCheck({evil: [Problem(evil, case, failed=evil)]}, [value], [evil])
    results.more = [f"--node-check={write(results.folder / 'node_check.json', check)}"]
    text = results.report()
    assert "<b>$" not in text
    assert "<b>&" not in text
    assert text.count("&lt;b&gt;$") > 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"commit": "d1" * 20}, "they come from 2 commits."),
        ({"commit": "d1" * 20, "jax": "0.10.2"}, "2 commits and 2 versions of JAX."),
        ({"container": None}, "they come from 2 images and 2 SIF files."),
        ({"nodes": "jrc0102"}, "2 different sets of nodes"),
        ({"commit": "3f2c" * 10 + "-dirty"}, "uncommitted changes"),
        ({"commit": "unknown"}, "commits are not known"),
    ],
)
def test_mixed_provenance_is_a_warning(results, changes, sentence):
    results.add_run(segments=(replace(SEGMENT, provenance=replace(PROVENANCE, **changes)),))
    text = results.report()
    assert sentence in header(text)
    assert "What differs" in text


DAMAGES = {
    "truncated": '{"schema_version": 2, "provenance": {',
    "bytes": "\xff\xfe\x00",
    "list": "[]",
    "old": '{"allocation": {"nodes": 1}, "median": 1.0}',
    "field": '{"schema_version": 2, "passed": true}',
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("result", ["train", "benchmark", "smoke test", "node check"])
def test_damaged_result_gives_a_sentence(results, kind, result):
    results.add_run()
    results.add(benchmark("compute", [measurement(FLOAT32)]))
    node_check = results.folder / "node_check.json"
    results.more = [f"--node-check={node_check}"]
    write(node_check, NodeCheck({}, [], []))
    files = {"train": results.train[0], "benchmark": results.benchmark[0]}
    file = (files | {"smoke test": results.smoke_test, "node check": node_check})[result]
    file.write_text(DAMAGES[kind], encoding="latin-1")
    refuses(results, file, "JW001", "delete it and make it again")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (None, "delete summary.json beside it and run snakemake again"),
        ("", "delete summary.json beside it and run snakemake again"),
        ('{"step": 20, "loss": 3}\n{"step": 4\n', "delete it and run snakemake again"),
        ('{"step": 20}\n', "delete it and run snakemake again"),
    ],
)
def test_damaged_metrics_give_a_sentence(results, text, remedy):
    results.add_run()
    file = results.train[0].with_name("metrics.jsonl")
    file.unlink()
    if text is not None:
        file.write_text(text)
    refuses(results, file, "JW481", remedy)


def test_missing_result_gives_a_sentence(results):
    file = results.add(benchmark("compute", [measurement(FLOAT32)]))
    file.unlink()
    refuses(results, file, "JW480", "run snakemake again")


def refuses(results, file, code, remedy):
    """Asserts that no report is written, and that an error names the file and what to do."""
    with pytest.raises(UserError) as error:
        results.report()
    message = str(error.value)
    assert error.value.code == code
    assert message.startswith(f"{file} ") and remedy in message
    assert "\n" not in message
    assert not (results.folder / "report.html").exists()


def test_unwritable_page_gives_a_sentence(results):
    (results.folder / "report.html").mkdir()
    with pytest.raises(IsADirectoryError):  # jaxway makes a sentence of it
        results.report()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (123456.7, "123\u202f457"),
        (2.34567, "2.346"),
        (0.061592, "0.06159"),
        (-3.0, "\N{MINUS SIGN}3.000"),
        (1.5e-6, "1.50e\N{MINUS SIGN}06"),
        (None, "\N{EM DASH}"),
    ],
)
def test_number(value, text):
    assert plots.number(value) == text
