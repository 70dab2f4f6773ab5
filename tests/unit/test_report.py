"""The report: what it says of results made here, and what it does with damaged ones."""

import copy
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from jaxway.analysis import history, stats
from jaxway.report import benchmarks, page, plots

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
    "program": "train",
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
FLOAT32 = {"dtype": "float32", "shape": "8192x8192x8192"}
GPU = {
    **{"clock_mhz_min": 1275, "clock_mhz": 1410, "power_w": 391.5, "temperature_c": 61},
    **{"slowed_by": ["power limit"], "energy_j_per_call": 32.0},
}
SITE = {
    "name": "jureca",
    "references": [
        {
            **{"benchmark": "compute", "case": {"dtype": "float32"}, "unit": "TFLOP/s"},
            **{"low": 17.0, "high": 19.5, "source": "NVIDIA's data sheet"},
        }
    ],
}


def measurement(case, median=18.5, rounds=10, **changes) -> dict[str, Any]:
    """A measurement of a matrix product, or whatever ``changes`` make of it."""
    middle = (rounds - 1) / 2
    samples = [
        [median * (1 + (k - middle) / 1000 + j / 100) for j in (-1, 0, 1)] for k in range(rounds)
    ]
    return {
        **{"case": case, "quantity": "throughput per device", "unit": "TFLOP/s"},
        **{"higher_is_better": True, "formula": "2 m n k / t", "gpu": {}},
        "check": {"error": 1.5e-6, "tolerance": 5e-6},
        **{"seconds": samples, "samples": samples, **stats.summary(samples), "median": median},
        **changes,
    }


def bandwidth(kernel, median, intensity=None):
    per_unit = intensity and intensity / 1000
    changes = {"quantity": "bandwidth per device", "unit": "GB/s", "formula": "3 S / t"}
    more = {"intensity": intensity, "flops_per_unit": per_unit}
    return measurement({"kernel": kernel}, median, **changes, **more)


def busbw(operation, size, median):
    changes = {"quantity": "busbw", "unit": "GB/s", "formula": "S / t * 1.5", "bytes": size}
    return measurement({"operation": operation, "kilobytes": size // 1024}, median, **changes)


def tokens(median, **changes):
    more = {"quantity": "training throughput", "unit": "tokens/s", "tokens_per_call": 8192}
    more |= {"model_tflops_per_device": 98.7, "mfu": 0.316, "mfu_causal": 0.301}
    return measurement({"preset": "124M"}, median, **more | changes)


def benchmark(program, measurements, name=None, **changes) -> dict[str, Any]:
    return {
        **{"name": name or program, "program": program, "options": {"warmup": 1, "repeats": 3}},
        **{"provenance": PROVENANCE, "transports": {}, "failed": None},
        **{"measurements": measurements, **changes},
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
        self.site = folder / "site.yaml"
        self.site.write_text(yaml.safe_dump(SITE))
        self.history = folder / "history"
        self.more: list[str] = []

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

    def add(self, *benchmarks, nodes=1, gpus=4, place=None) -> Path:
        """The result of an allocation."""
        for each in benchmarks:
            if each["provenance"]:
                each["provenance"] = each["provenance"] | {"devices": nodes * gpus}
        allocation = {"nodes": nodes, "gpus_per_node": gpus, "processes_per_node": 1}
        result = {"allocation": allocation, "benchmarks": benchmarks}
        path = self.write(f"benchmark/{place or f'{nodes}x{gpus}'}.json", result)
        self.benchmark = [*dict.fromkeys([*self.benchmark, path])]
        return path

    def report(self) -> str:
        out = self.folder / "report.html"
        command = ["report.py", f"--out={out}", f"--smoke-test={self.smoke_test}"]
        command += ["--train", *map(str, self.train), "--benchmark", *map(str, self.benchmark)]
        command += [f"--site={self.site}", f"--history={self.history}", *self.more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            page.main()
        assert not list(self.folder.glob("*.part"))
        text = out.read_text()
        html = WellFormed()
        html.feed(text)
        assert not html.open
        assert len(html.ids) == len(set(html.ids))
        assert all(a[0] == "#" and a[1:] in html.ids for a in html.addresses)
        # Nothing comes from elsewhere, in CSS either, and every colour of a plot is a variable.
        assert not re.search(r"url\(|@import|xmlns", text)
        body = text[text.index("<body") :]
        assert not re.search(r"(fill|stroke): #", body)
        assert not re.search(r"\b(nan|inf|Undefined|None|np\.float64)\b", body)
        return body


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def changed(**changes):
    return copy.deepcopy(PROVENANCE) | changes


def test_runs_as_a_program_on_empty_lists(results):
    out = results.folder / "new" / "report.html"
    command = [sys.executable, "-W", "error", "-m", "jaxway", "report", f"--out={out}"]
    command += [f"--smoke-test={results.smoke_test}", "--train", "--benchmark"]
    command += [f"--site={results.site}", f"--history={results.history}"]
    subprocess.run(command, check=True)
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
    evil = "<b>$\\frac{a}{b$ & \"'"
    case = {"dtype": evil, "shape": evil}
    bad = {"case": {"dtype": evil}, "failed": evil}
    changes = {"quantity": evil, "unit": evil, "formula": evil}
    found = [measurement(case, gpu=GPU | {"slowed_by": [evil]}, **changes), bad]
    compute = benchmark("compute", [*found, measurement({"dtype": evil}, intensity=9)], evil)
    compute["measurements"][-1]["flops_per_unit"] = 1.0
    results.add(
        compute,
        benchmark("memory", [bandwidth(evil, 1400.0)]),
        benchmark("collective", [busbw(evil, 2**k, 1.0) for k in (9, 12)]),
        place="<b>&",
    )
    problem = {"benchmark": evil, "case": case, "failed": evil}
    value = {"benchmark": evil, "case": case, "by_node": {evil: 1.0}, "usual": 1.0}
    vetting = {"nodes": {evil: [problem]}, "values": [value], "exclude": evil}
    results.more = [f"--node-check={results.write('vetting.json', vetting)}"]
    text = results.report()
    assert "<b>$" not in text
    assert "<b>&" not in text
    assert text.count("&lt;b&gt;$") > 20


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
    curve = page.load_curve(results.train[0].with_name("metrics.jsonl"), RUN["data"])
    assert curve.shape == (2, plots.POINTS)
    assert curve[1].mean() == pytest.approx(5)
    # A token of four bytes costs four times as much as each of them.
    tokens = RUN["data"] | {"train_tokens": RUN["data"]["train_bytes"] / 4}
    assert 4 * page.load_curve(results.train[0].with_name("metrics.jsonl"), tokens)[
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


def header(text):
    return text[: text.index("</header>")]


def section(text, begin, end="</section>"):
    """The part of the page from a text on."""
    return begin + text.partition(begin)[2].partition(end)[0]


def rows(text):
    """The rows of the tables in a part of the page, as lists of plain text."""
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in found]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in cells]


def test_verdicts_are_counted_and_bad_ones_named(results):
    shapes = [FLOAT32 | {"shape": shape} for shape in ("1x1x1", "2x2x2", "3x3x3", "4x4x4")]
    found = [
        measurement(case, median) for case, median in zip(shapes, (18, 9, 360, 18), strict=True)
    ]
    found[3]["failed"] = "the product is wrong: its error is 0.3"
    found.append({"case": {"dtype": "float8"}, "skipped": "the A100 has no float8"})
    found.append(measurement({"dtype": "bfloat16"}, 250.0))
    io = benchmark("io", [], provenance=None, failed="it did not end within 5 min")
    results.add(benchmark("compute", found), io)
    text = results.report()
    counts = "1 passed, 1 slow, 1 implausibly fast, 2 failed, 1 without reference, 1 skipped."
    assert f'<p class="status bad">✗ Benchmarks: {counts}</p>' in header(text)
    part = section(text, "<h2>Benchmarks")
    assert f"<p>{counts}</p>" in part
    assert re.findall(r"<li>(.*)</li>", part) == [
        '<b class="bad">slow</b>: compute float32 2x2x2 on 1x4: '
        "9 TFLOP/s, where 17 to 19.5 are due",
        '<b class="bad">implausibly fast</b>: compute float32 3x3x3 on 1x4: '
        "360 TFLOP/s, where 17 to 19.5 are due",
        '<b class="bad">failed</b>: compute float32 4x4x4 on 1x4: '
        "the product is wrong: its error is 0.3",
        '<b class="bad">failed</b>: io on 1x4: it did not end within 5 min',
    ]
    # The best is one that can be believed, and one that failed has no place in the plot.
    assert "<dd>compute bfloat16</dd>" in header(text)
    assert "float32 4x4x4" not in section(part, "<svg", "</svg>")
    kept = {row[0]: row for row in rows(part)}
    assert kept["compute float32 4x4x4"][2] == "failed"
    assert kept["compute float8"][1:3] == ["1x4", "skipped"]
    assert kept["compute float8"][-1] == "the A100 has no float8"
    assert kept["io"][-1] == "it did not end within 5 min"


def test_many_bad_values_are_folded(results):
    case = [{"dtype": "float32", "shape": f"{k}x1x1"} for k in range(30)]
    results.add(benchmark("compute", [measurement(each, 1.0) for each in case]))
    part = section(results.report(), "<h2>Benchmarks")
    assert "<summary>10 more</summary>" in part
    assert part.count('<b class="bad">slow</b>') == 30


@pytest.mark.parametrize(
    ("median", "line"),
    [(18.5, ' good">✓ Benchmarks: 1 passed.'), (None, ' ">Benchmarks: 1 without reference.')],
)
def test_good_benchmarks(results, median, line):
    case = FLOAT32 if median else {"dtype": "tf32"}
    results.add(benchmark("compute", [measurement(case, median or 1.0)]))
    assert f'<p class="status{line}</p>' in header(results.report())


def test_benchmark_table(results):
    one = measurement(FLOAT32, per_device=[18.0, 20.0, 20.0, 20.0])
    time = {"quantity": "import of JAX", "unit": "s", "higher_is_better": False, "formula": "t"}
    single = measurement({"what": "import"}, 2.5, rounds=1, **time)
    del single["check"]
    results.add(benchmark("compute", [one]), benchmark("io", [single]))
    text = results.report()
    head, row = rows(section(text, "<h3>compute", "<h3>"))
    assert dict(zip(head, row, strict=True)) == {
        **{"name": "compute float32 8192x8192x8192", "place": "1x4", "verdict": "pass"},
        **{"median": "18.50", "95 % interval": "18.44 to 18.56", "min": "18.23", "p95": "18.74"},
        **{"max": "18.77", "rounds": "10", "samples": "30", "check error": "1.5e-06"},
        **{"slowest device": "\N{MINUS SIGN}10.0&#8239;%", "tolerance": "5e-06"},
        **{"devices": "4", "nodes": "jrc0101"},
        "reason or reference": "18.5 TFLOP/s, where 17 to 19.5 are due (NVIDIA&#39;s data sheet)",
    }
    assert "Green: the range of the site" in section(text, "<h3>compute", "<h3>")
    head, row = rows(section(text, "<h3>io"))
    table = dict(zip(head, row, strict=True))
    dash = "\N{EM DASH}"
    assert [table[x] for x in ("95 % interval", "rounds", "check error")] == [dash, "1", dash]
    assert "Lower is better" in section(text, "<h3>io")
    assert text.count("<figure>") == 2
    assert "What the GPUs told" not in text


def test_reference_is_drawn(results):
    """Its range is a line of its own in the plot, inside it even where the value is far below."""
    results.add(benchmark("compute", [measurement(FLOAT32, 1.0)]))
    with_range = section(results.report(), "<svg", "</svg>")
    green = re.findall(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) [^"]*" style="[^"]*--c3', with_range)
    ((left, _, right),) = green
    assert 0.8 * 640 < float(left) < float(right) < 640
    other = SITE["references"][0] | {"unit": "GFLOP/s"}  # type: ignore[operator]
    for site in ({"name": "jureca"}, SITE | {"references": [other]}):
        results.site.write_text(yaml.safe_dump(site))
        plain = results.report()
        assert "--c3" not in section(plain, "<svg", "</svg>")
        assert "Green" not in plain


def test_gpus_have_a_table(results):
    results.add(benchmark("train", [tokens(90000.0, gpu=GPU)]))
    part = section(results.report(), "What the GPUs told")
    figures = ["1\N{NARROW NO-BREAK SPACE}410", "1\N{NARROW NO-BREAK SPACE}275", "391.5", "61"]
    assert rows(part)[1][2:] == [*figures, "32.00", "0.003906", "power limit"]
    assert "98.70 TFLOP/s of model arithmetic on each device: MFU 31.6&#8239;%, causal 30.1" in (
        results.report()
    )


def test_thousand_cases(results):
    cases = [{"dtype": "tf32", "shape": f"{k}"} for k in range(1000)]
    values = [100.0 + (k * 7919) % 1000 for k in range(1000)]
    found = [measurement(*each, rounds=2) for each in zip(cases, values, strict=True)]
    found[1]["failed"] = "it broke"
    found.append({"case": {"dtype": "float8"}, "skipped": "no float8"})
    results.add(benchmark("compute", found))
    text = results.report()
    assert text.count("<svg") == 1
    assert len(text) < 1_000_000
    assert text.count('<th scope="row">compute tf32') == 1000
    assert "Worst: compute tf32 0, 100.0 TFLOP/s" in text
    assert "<summary>Table of all 1000</summary>" in text


def test_many_groups_are_not_all_plotted(results):
    found = [measurement({"k": k}, quantity=f"q{k}") for k in range(benchmarks.PLOTS + 5)]
    results.add(benchmark("io", found))
    assert results.report().count("<svg") == benchmarks.PLOTS


def test_collectives_are_curves(results):
    sizes = [2**12, 2**16, 2**20, 2**30]
    for nodes in (1, 2):
        found = [
            busbw(operation, size, median=nodes * speed * size / 2**20)
            for operation, speed in (("all_gather", 1), ("all_reduce", 1.2))
            for size in sizes
        ]
        results.add(benchmark("collective", found, f"collective-nodes={nodes}"), nodes=nodes)
    part = section(results.report(), "<h3>collective")
    svg = section(part, "<svg", "</svg>")
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert {"4 KiB", "256 MiB", "GB/s", "message size"} <= set(texts)
    assert [text for text in texts if text.startswith("all")] == [
        "all_gather 1x4",
        "all_reduce 1x4",
        "all_gather 2x4",
        "all_reduce 2x4",
    ]
    assert len(re.findall(r"--c[1-4]\); stroke-width: 1.8", svg)) == 4
    # Sizes are a factor apart, and so are their places.
    points = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ L ([\d.]+) ', svg)
    first, second, third = map(float, points[-1])
    assert second - first == pytest.approx(third - second, abs=0.01)
    assert len(rows(section(part, "<details><summary>Table of all 16"))) == 17
    assert "grey" not in part


@pytest.mark.parametrize("fastest", [101, 10000])
def test_many_curves_are_grey(results, fastest):
    """Six lines have names, which keep their distance, inside the plot."""
    speeds = [*(100 + k / 100 for k in range(8)), fastest]
    curves = [[busbw("all_reduce", 2**n, speed) for n in (10, 20)] for speed in speeds]
    results.add(*(benchmark("collective", found, f"c{k}") for k, found in enumerate(curves)))
    part = section(results.report(), "<h3>collective")
    assert "grey and without a name: all but the best 6" in part
    named = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>all_reduce (c\d)<', part)
    assert [name for _, name in named] == ["c3", "c4", "c5", "c6", "c7", "c8"]
    heights = [float(y) for y, _ in named]
    assert all(a - b > 19 for a, b in itertools.pairwise(heights))
    assert min(heights) > 20
    assert max(heights) < 300
    assert len(re.findall(r"--grey\); stroke-width: 1.8", part)) == 3


@pytest.mark.parametrize(("batch", "kind"), [(None, "weak"), (64, "strong")])
def test_scaling(results, batch, kind):
    options = {"global_batch": batch}
    for nodes, speed in ((1, 100.0), (4, 300.0)):
        value = tokens(speed, rounds=1)
        results.add(
            benchmark("train", [value], f"train-nodes={nodes}", options=options), nodes=nodes
        )
    part = section(results.report(), f"<h3>Training: {kind} scaling 124M")
    assert [row[:5] for row in rows(part)[1:]] == [
        ["1x4", "1", "4", "100.0", "100.0&#8239;%"],
        ["4x4", "4", "16", "300.0", "75.0&#8239;%"],
    ]
    svg = section(part, "<svg", "</svg>")
    assert {"devices", "tokens/s", "ideal", "measured"} <= set(re.findall(r">([^<>]+)<", svg))


def test_no_scaling_of_different_work_or_failures(results):
    first, second = {"global_batch": 64}, {"global_batch": 128}
    results.add(benchmark("train", [tokens(100.0)], options=first))
    results.add(benchmark("train", [tokens(200.0)], options=second), nodes=2)
    failed = tokens(200.0, failed="it broke")
    results.add(benchmark("train", [failed], options=first), nodes=4)
    assert "scaling" not in results.report()


def test_roofline(results):
    """At the best bandwidth of a kernel, not of a transfer, and the best credible peak."""
    compute = [
        measurement(FLOAT32 | {"shape": "1x1x1"}, 18.0, intensity=1365.0),
        measurement(FLOAT32 | {"shape": "2x2x2"}, 99.0, intensity=1365.0),
        measurement({"dtype": "bfloat16"}, 250.0, intensity=2730.0),
    ]
    compute = [each | {"flops_per_unit": 1.0} for each in compute]
    memory = [
        bandwidth("copy", 1300.0),
        bandwidth("triad", 1250.0, 1 / 6),
        bandwidth("host to device", 9000.0),
    ]
    train = tokens(90000.0, intensity=90.0, flops_per_unit=0.001)
    results.add(benchmark("compute", compute), benchmark("memory", memory))
    results.add(benchmark("train", [train]), place="other")
    text = results.report()
    assert "Roofline of other" not in text
    part = section(text, "<h3>Roofline of 1x4")
    assert "1\N{NARROW NO-BREAK SPACE}300 GB/s times the intensity" in part
    svg = section(part, "<svg", "</svg>")
    texts = set(re.findall(r">([^<>]+)<", svg))
    assert {"float32 18.00", "bfloat16 250.0", "FLOP per byte", "TFLOP/s per device"} <= texts
    assert [row[0] for row in rows(part)[1:]] == [
        "compute float32 1x1x1",
        "compute float32 2x2x2",
        "compute bfloat16",
        "memory triad",
    ]
    assert rows(part)[4][2:] == ["0.1667", "0.2083"]


def run_at(results, day, **medians):
    """A run of a day, which the history then knows."""
    provenance = changed(time=f"2026-11-{day:02}T10:00:00Z")
    found = [measurement({"dtype": key, "batch": 1}, value) for key, value in medians.items()]
    history.add(results.history, results.add(benchmark("compute", found, provenance=provenance)))


def test_history_of_one_run_says_nothing(results):
    run_at(results, 1, tf32=100.0)
    assert "<h3>History" not in results.report()
    results.history = results.folder / "empty"
    assert "<h3>History" not in results.report()
    results.history.mkdir()
    assert "<h3>History" not in results.report()


def test_history(results):
    run_at(results, 1, tf32=100.0, float32=18.0, gone=1.0)
    run_at(results, 2, tf32=110.0, float32=18.0)
    run_at(results, 9, tf32=84.0, float32=18.0, new=1.0)
    part = section(results.report(), "<h3>History", "<section")
    times = ["3", "2026-11-01 10:00", "2026-11-09 10:00"]
    assert rows(part)[1:] == [
        ["compute tf32 1", "1x4", "TFLOP/s", "84.0", "105.0", "0.8000", *times],
        ["compute float32 1", "1x4", "TFLOP/s", "18.00", "18.00", "1.000", *times],
    ]
    svg = section(part, "<svg", "</svg>")
    texts = set(re.findall(r">([^<>]+)<", svg))
    assert {"2026-11-05", "time, UTC", "value / median of its runs"} <= texts
    assert part.count('class="swatch"') == 2


def test_history_of_another_place_or_setting_is_another(results):
    run_at(results, 1, tf32=100.0)
    found = [measurement({"dtype": "tf32", "batch": 1}, 50.0)]
    later = changed(time="2026-11-02T10:00:00Z")
    for changes in ({"provenance": later | {"site": "profiles/x"}}, {"options": {"repeats": 9}}):
        path = results.add(benchmark("compute", found, **{"provenance": later} | changes))
        history.add(results.history, path)
        assert "<h3>History" not in results.report()


def test_long_history_is_folded(results):
    for day in (1, 2):
        run_at(results, day, **{f"type{k}": 100.0 + day * k for k in range(40)})
    part = section(results.report(), "<h3>History", "<section")
    assert "<summary>10 more, which changed less</summary>" in part
    assert part.count('class="swatch"') == 6
    names = [row[0] for row in rows(part) if row[0] != "name"]
    assert len(names) == 40
    assert names[0] == "compute type39 1"
    assert names[-1] == "compute type0 1"


def test_nodes(results):
    value = {"benchmark": "compute", "case": {"dtype": "tf32"}, "quantity": "q", "unit": "TFLOP/s"}
    by_node = {"jrc0101": 2.04, "jrc0102": 1.0}
    slow = {"benchmark": "compute", "case": {"dtype": "tf32"}, "slower_by": 0.5}
    failed = {"benchmark": "io", "case": {}, "failed": "failed: no file system"}
    vetting = {
        "nodes": {"jrc0101": [], "jrc0102": [slow, failed], "jrc0103": [failed]},
        "values": [value | {"by_node": by_node, "usual": 2.0}],
        "exclude": "--exclude=jrc0102,jrc0103",
    }
    results.more = [f"--node-check={results.write('vetting.json', vetting)}"]
    part = section(results.report(), "<h3>Nodes")
    said = "io: failed: no file system"
    assert rows(part) == [
        ["node", "verdict", "compute tf32", "named for"],
        ["jrc0101", "✓", "102.0&#8239;%", ""],
        ["jrc0102", "✗ named", "50.0&#8239;%", f"1 slow value; {said}"],
        ["jrc0103", "✗ named", "\N{EM DASH}", said],
    ]
    assert '<td class="n bad">50.0' in part
    assert '<td class="n good">102.0' in part
    assert re.search(r"<pre[^>]*>--exclude=jrc0102,jrc0103</pre>", part)
    vetting |= {"nodes": {"jrc0101": []}, "exclude": ""}
    results.write("vetting.json", vetting)
    assert "<pre" not in section(results.report(), "<h3>Nodes")


def test_cost(results):
    def job(what, run, seconds, waited, wasted=False):
        times = {"submitted": f"2026-01-0{run}T10:00:00", "seconds": seconds, "waited": waited}
        return {"what": what, "run": f"run{run}", "nodes": 2, "wasted": wasted, **times}

    jobs = [job("smoke_test", 1, 18, 5), job("train_run a", 1, 3600, 0, True)]
    cost = {"cores_per_node": 128, "problem": None, "jobs": [*jobs, job("train_run a", 2, 36, 60)]}
    results.more = [f"--cost={results.write('cost.json', cost)}"]
    part = section(results.report(), "<h2>Cost")
    assert "3 jobs used 2.030 node-h, which are 259.8 core-h by the site's 128 cores" in part
    assert "2.000 node-h were wasted" in part
    heads = ["jobs", "node-h", "wasted, node-h", "longest in the queue, s"]
    assert rows(part) == [
        ["done", *heads],
        ["smoke_test", "1", "0.01000", "0", "5"],
        ["train_run a", "2", "2.020", "2.000", "60"],
        ["run that began", *heads],
        ["2026-01-01 10:00:00", "2", "2.010", "2.000", "5"],
        ["2026-01-02 10:00:00", "1", "0.02000", "0", "60"],
    ]
    results.write("cost.json", {"cores_per_node": None, "problem": "Slurm is silent", "jobs": []})
    part = section(results.report(), "<h2>Cost")
    assert "Slurm is silent." in part
    assert "<table" not in part


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
        case "old":
            results.benchmark[0].write_text('{"allocation": {"nodes": 1}, "median": 1.0}')
            return results.benchmark[0]
        case "vetting":
            results.more = [f"--node-check={results.write('vetting.json', {'nodes': {}})}"]
            return results.folder / "vetting.json"
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


@pytest.mark.parametrize(
    "kind", ["truncated", "bytes", "list", "old", "vetting", "field", "missing"]
)
def test_damaged_result_gives_a_sentence(results, kind):
    says_what_to_do(results, kind)


@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "without loss"])
def test_damaged_metrics_give_a_sentence(results, kind):
    says_what_to_do(results, f"metrics {kind}")


def says_what_to_do(results, kind):
    results.add_run()
    results.add(benchmark("compute", [measurement(FLOAT32)]))
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
    assert plots.number(value) == text
