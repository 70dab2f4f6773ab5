"""The report: what it says of results made here, and what it does with damaged ones."""

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report

PROVENANCE = {
    "time": "2026-11-22T16:51:39Z",
    "container": {
        "image": "docker://nvcr.io/nvidia/jax:24.10-maxtext-py3",
        "digest": "sha256:" + "0a" * 32,
        "sha256": "0b" * 32,
        "bytes": 7,
        "apptainer": "apptainer version 1.4.5",
    },
    "commit": "3f2c" * 10,
    "site": "profiles/jureca",
    "nodes": "jrc0101",
    "job": "14000001",
    "processes": 1,
    "devices": 4,
    "platform": "gpu",
    "device_kind": "NVIDIA A100-SXM4-40GB",
    "python": "3.10.12",
    "jax": "0.4.33",
    "jaxlib": "0.4.33",
    "numpy": "1.26.4",
    "backend": "PJRT C API cuda 12060",
    "driver": "570.86.15",
    "arguments": {"out": "x", "global_batch": 16, "context": 128, "data": ["python", "more"]},
}
SMOKE_TEST = {
    "provenance": PROVENANCE,
    "passed": True,
    "checks": [{"name": "jit", "passed": True, "measured": "error 0", "expected": "error 0"}],
    "versions": {"python": "3.10.12", "optax": "0.2.3", "driver": None},
}
SEGMENT = {"first_step": 1, "last_step": 100, "seconds": 60.5, "provenance": PROVENANCE}
RUN: dict[str, Any] = {
    "provenance": PROVENANCE,
    "steps": 100,
    "parameters": 1234567,
    "flops_per_token": 7000000,
    "data": {
        **{"files": 1, "train_bytes": 10**7, "train_tokens": 10**7, "validation_bytes": 10**5},
        "sha256": "0c" * 32,
        "tokenizer": "bytes",
    },
    "train_bits_per_byte": 1.9,
    "validation_bits_per_byte": 2.0,
    "unigram_bits_per_byte": 4.7,
    "gzip_bits_per_byte": 2.5,
    "tokens_per_second": 123456.7,
    "mfu": 0.421,
    "mfu_causal": 0.4,
    "seconds": 60.5,
    "sample": "def f():\n",
    "segments": [SEGMENT],
}
BENCHMARK = {
    "provenance": PROVENANCE,
    "benchmark": "matmul",
    "quantity": "float32 throughput per device",
    "unit": "TFLOP/s",
    "higher_is_better": True,
    "formula": "2 n^3 / t",
    "check": {"error": 1.5e-6, "tolerance": 5e-6},
    "seconds": [0.1, 0.2, 0.3],
    "samples": [18.0, 18.5, 19.0],
    "min": 18.0,
    "median": 18.5,
    "max": 19.0,
    "iqr": 0.5,
    "median_per_device": [18.0, 20.0, 20.0, 20.0],
}


class WellFormed(HTMLParser):
    """Asserts that every element is closed in its turn, and collects addresses and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if "href" in name or "src" in name]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class Results:
    """A folder of result files, and the report made from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.train: list[Path] = []
        self.benchmark: list[Path] = []
        self.smoke_test = self.write("smoke_test.json", SMOKE_TEST)

    def write(self, name: str, result: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        return path

    def add_run(self, name="base", losses=(8, 4, 2), **changes):
        self.train.append(self.write(f"train/{name}/summary.json", RUN | changes))
        nats = [math.log(2) * bits for bits in losses]
        lines = [json.dumps({"step": 20 * k, "loss": y}) for k, y in enumerate(nats, 1)]
        self.train[-1].with_name("metrics.jsonl").write_text("\n".join(lines))

    def add_benchmark(self, name="matmul", **changes):
        self.benchmark.append(self.write(f"benchmark/{name}.json", BENCHMARK | changes))

    def report(self) -> str:
        out = self.folder / "report.html"
        command = ["report.py", f"--out={out}", f"--smoke-test={self.smoke_test}"]
        command += ["--train", *map(str, self.train), "--benchmark", *map(str, self.benchmark)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            report.main()
        assert not list(self.folder.glob("*.part"))
        text = out.read_text()
        page = WellFormed()
        page.feed(text)
        assert not page.open
        assert len(page.ids) == len(set(page.ids))
        assert all(a[0] == "#" and a[1:] in page.ids for a in page.addresses)
        # Nothing comes from elsewhere, in CSS either, and every colour of a plot is a variable.
        assert not re.search(r"url\(|@import|xmlns", text)
        body = text[text.index("<body") :]
        assert not re.search(r"(fill|stroke): #", body)
        return body


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def changed(**changes):
    return copy.deepcopy(PROVENANCE) | changes


def test_runs_as_a_program_on_empty_lists(results):
    out = results.folder / "new" / "report.html"
    command = [sys.executable, "-W", "error", report.__file__, f"--out={out}"]
    command += [f"--smoke-test={results.smoke_test}", "--train", "--benchmark"]
    subprocess.run(command, check=True)
    text = out.read_text()
    assert "No training was configured." in text
    assert "No benchmark was configured." in text


def test_head_and_provenance(results):
    results.add_run()
    results.add_benchmark()
    text = results.report()
    assert "1 training and 1 benchmark on jureca, NVIDIA A100-SXM4-40GB." in text
    assert "Smoke test passed: 1 of 1 checks." in text
    for value in ("sha256:" + "0a" * 32, "0b" * 32, "3f2c" * 10, "14000001", "570.86.15", "0.2.3"):
        assert value in text
    assert 'class="warning' not in text
    assert "python, more" in text  # a list among the settings


def test_failed_smoke_test_without_devices(results):
    failed = {
        "name": "jit",
        "passed": False,
        "measured": "no GPU",
        "expected": "4",
        "meaning": "Ask.",
    }
    results.write(
        "smoke_test.json", SMOKE_TEST | {"passed": False, "checks": [failed]} | {"provenance": None}
    )
    text = results.report()
    assert "Smoke test failed: 0 of 1 checks." in text
    assert "Ask." in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "The model beats gzip by 20.0\u202f%: it needs 2.000 bits"),
        ({"gzip_bits_per_byte": 1.6}, "so 25.0\u202f% more. It has seen too little text: 205 kB"),
        ({"validation_bits_per_byte": 5.5}, "worse than the mere frequencies of bytes"),
        ({"gzip_bits_per_byte": 1.6, "steps": 10000}, "give it more data"),
        (
            {"gzip_bits_per_byte": 1.6, "steps": 10000, "train_bits_per_byte": 1.99},
            "It saw 10 MB 2.0 times: raise layers",
        ),
    ],
)
def test_verdict(results, changes, sentence):
    results.add_run(**changes)
    assert sentence in results.report()


def test_sample_is_text(results):
    results.add_run(sample='<script>alert(1)</script>\x00\x1b[31m\u202e\ud800 & "é\t', seconds=1)
    text = results.report()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;��[31m�� &amp; &#34;é\t</pre>" in text


def test_names_are_text(results):
    results.add_benchmark("a$b<c>", quantity="<b>$x$", unit="$\\frac{a}{b$")
    assert "<b>$" not in results.report()


def test_several_runs_share_a_plot(results):
    for k in range(8):
        results.add_run(f"seed={k}", validation_bits_per_byte=2 + k / 10)
    text = results.report()
    assert text.count("<svg") == 9
    assert text.count("<details") == 8
    assert text.index("seed=0") < text.index("seed=7")
    assert "best 2.000" in text


def test_curve_of_many_steps_is_averaged(results):
    results.add_run(losses=[8 - 6 * k / 99999 for k in range(100000)])
    curve = report.load_curve(results.train[0].with_name("metrics.jsonl"), RUN["data"])
    assert curve.shape == (2, report.POINTS)
    assert curve[1].mean() == pytest.approx(5)
    # A token of four bytes costs four times as much as each of them.
    tokens = RUN["data"] | {"train_tokens": RUN["data"]["train_bytes"] / 4}
    assert 4 * report.load_curve(results.train[0].with_name("metrics.jsonl"), tokens)[
        1
    ].mean() == pytest.approx(5)
    assert len(results.report()) < 50_000


def test_mfu_is_shown_where_it_is_known(results):
    results.add_run()
    assert "42.10 % and 40.00 %" in results.report()
    results.add_run("base", mfu=None, mfu_causal=None)
    assert "MFU" not in results.report()


def test_other_programs_have_a_table(results):
    summary = {"provenance": PROVENANCE, "program": "command", "steps": 77, "seconds": 5.0}
    results.train.append(
        results.write("train/mine/summary.json", summary | {"segments": [SEGMENT]})
    )
    text = results.report()
    assert "Other programs" in text and "<td>command</td>" in text and ">77<" in text
    results.add_run()
    assert "validation" in results.report()


def test_resumed_run_names_its_segments(results):
    second = {"first_step": 61, "last_step": 100, "seconds": 20, "provenance": changed(job="15")}
    results.add_run(segments=[SEGMENT | {"last_step": 60}, second])
    assert "went on from its checkpoint" in results.report()


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
def test_mixed_provenance_is_said(results, changes, sentence):
    results.add_run(segments=[SEGMENT | {"provenance": changed(**changes)}])
    text = results.report()
    assert sentence in text[: text.index("</header>")]
    assert "What differs" in text


def test_benchmark_table(results):
    results.add_benchmark()
    results.add_benchmark("twice", median=37.0, min=36.0, max=38.0, samples=[36.0, 37.0, 38.0])
    results.add_benchmark("time", quantity="time", unit="s", higher_is_better=False)
    text = results.report()
    assert text.count("<figure>") == 2  # one for each quantity
    for cell in ("18.50", "0.50", "3", "\N{MINUS SIGN}10.0\u202f%", "1.5e-06", "5e-06", "4"):
        assert f'<td class="n">{cell}</td>' in text
    assert "lower is better" in text
    assert "37.00 TFLOP/s" in text


def test_thousand_benchmarks(results):
    for k in range(1000):
        median = 100.0 + (k * 7919) % 1000
        results.add_benchmark(f"size={k}", median=median, max=median + 1, samples=[median] * 20)
    text = results.report()
    assert text.count("<svg") == 1
    assert len(text) < 600_000
    assert text.count('<th scope="row">size=') == 1000
    assert "Worst: size=0, 100.0 TFLOP/s" in text


def test_many_groups_are_not_all_plotted(results):
    for k in range(report.PLOTS + 5):
        results.add_benchmark(f"b{k}", quantity=f"quantity {k}")
    assert results.report().count("<svg") == report.PLOTS


def damage(results, kind):
    metrics = results.train[0].with_name("metrics.jsonl")
    match kind:
        case "truncated":
            results.train[0].write_text('{"provenance": {')
            return results.train[0]
        case "bytes":
            results.benchmark[0].write_bytes(b"\xff\xfe\x00")
            return results.benchmark[0]
        case "list":
            results.benchmark[0].write_text("[]")
            return results.benchmark[0]
        case "field":
            results.write("smoke_test.json", {"provenance": None, "passed": True})
            return results.smoke_test
        case "missing":
            results.benchmark[0].unlink()
            return results.benchmark[0]
        case "metrics missing":
            metrics.unlink()
        case "metrics truncated":
            metrics.write_text('{"step": 20, "loss": 3}\n{"step": 4')
        case "metrics empty":
            metrics.write_text("")
        case "metrics without loss":
            metrics.write_text('{"step": 20}\n')
    return metrics


@pytest.mark.parametrize("kind", ["truncated", "bytes", "list", "field", "missing"])
def test_damaged_result_gives_a_sentence(results, kind):
    says_what_to_do(results, kind)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "without loss"])
def test_damaged_metrics_give_a_sentence(results, kind):
    says_what_to_do(results, f"metrics {kind}")


def says_what_to_do(results, kind):
    results.add_run()
    results.add_benchmark()
    path = damage(results, kind)
    with pytest.raises(SystemExit) as stop:
        results.report()
    message = str(stop.value.code)
    assert message.startswith(f"report: {path} ")
    assert "run snakemake again" in message
    assert "\n" not in message
    assert not (results.folder / "report.html").exists()


def test_unwritable_page_gives_a_sentence(results):
    (results.folder / "report.html").mkdir()
    with pytest.raises(SystemExit, match="cannot be written"):
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
    assert report.number(value) == text
