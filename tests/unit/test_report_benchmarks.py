"""The report's part about benchmarks: verdicts, tables, plots, scaling and rooflines."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from jaxway.report import benchmarks
from jaxway.steps.compiled import Compiled, folder_of, keep
from jaxway.steps.step import step_of_benchmark
from jaxway_shared.benchmark import CaseResult
from report_results import (
    FLOAT32,
    GPU,
    REFERENCE,
    Results,
    bandwidth,
    benchmark,
    busbw,
    header,
    measurement,
    rows,
    section,
    tokens,
)
from results import SITE


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_verdicts_are_counted_and_bad_ones_named(results):
    shapes = [FLOAT32 | {"shape": shape} for shape in ("1x1x1", "2x2x2", "3x3x3", "4x4x4")]
    found = [
        measurement(case, median) for case, median in zip(shapes, (18, 9, 360, 18), strict=True)
    ]
    found[3] = replace(found[3], failed="the product is wrong: error 0.3")
    found.append(CaseResult({"dtype": "float8"}, skipped="the A100 has no float8"))
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
        "9 TFLOP/s, expected 17 to 19.5 [JW460]",
        '<b class="bad">implausibly fast</b>: compute float32 3x3x3 on 1x4: '
        "360 TFLOP/s, expected 17 to 19.5 [JW460]",
        '<b class="bad">failed</b>: compute float32 4x4x4 on 1x4: the product is wrong: error 0.3',
        '<b class="bad">failed</b>: io on 1x4: it did not end within 5 min',
    ]
    # The best is a plausible one, and one that failed is not in the plot.
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
    time: dict[str, Any] = {"quantity": "import of JAX", "unit": "s", "formula": "t"}
    time |= {"higher_is_better": False, "check": None}
    single = measurement({"what": "import"}, 2.5, rounds=1, **time)
    results.add(benchmark("compute", [one]), benchmark("io", [single]))
    text = results.report()
    head, row = rows(section(text, "<h3>compute", "<h3>"))
    assert dict(zip(head, row, strict=True)) == {
        **{"name": "compute float32 8192x8192x8192", "allocation": "1x4", "verdict": "pass"},
        **{"median": "18.50", "95 % interval": "18.44 to 18.56", "min": "18.23", "p95": "18.74"},
        **{"max": "18.77", "rounds": "10", "samples": "30", "check error": "1.5e-06"},
        **{"slowest device": "\N{MINUS SIGN}10.0&#8239;%", "tolerance": "5e-06"},
        **{"devices": "4", "nodes": "jrc0101"},
        "reason or reference": "18.5 TFLOP/s, expected 17 to 19.5 (NVIDIA&#39;s data sheet)",
    }
    assert "Green: the range of the site" in section(text, "<h3>compute", "<h3>")
    head, row = rows(section(text, "<h3>io"))
    table = dict(zip(head, row, strict=True))
    dash = "\N{EM DASH}"
    assert [table[x] for x in ("95 % interval", "rounds", "check error")] == [dash, "1", dash]
    assert "Lower is better" in section(text, "<h3>io")
    assert text.count("<figure>") == 2
    assert "GPUs during the measurement" not in text


def test_reference_is_drawn(results):
    """Its range is a line of its own in the plot, inside it even where the value is far below."""
    results.add(benchmark("compute", [measurement(FLOAT32, 1.0)]))
    with_range = section(results.report(), "<svg", "</svg>")
    green = re.findall(r'd="M ([\d.]+) ([\d.]+) L ([\d.]+) [^"]*" style="[^"]*--c3', with_range)
    ((left, _, right),) = green
    assert 0.8 * 640 < float(left) < float(right) < 640
    other = REFERENCE | {"unit": "GFLOP/s"}
    for site in (SITE, SITE | {"references": [other]}):
        results.site.write_text(yaml.safe_dump(site))
        plain = results.report()
        assert "--c3" not in section(plain, "<svg", "</svg>")
        assert "Green" not in plain


def test_gpus_have_a_table(results):
    results.add(benchmark("train", [tokens(90000.0, gpu=GPU)]))
    part = section(results.report(), "GPUs during the measurement")
    figures = ["1\N{NARROW NO-BREAK SPACE}410", "1\N{NARROW NO-BREAK SPACE}275", "391.5", "61"]
    assert rows(part)[1][2:] == [*figures, "32.00", "0.003906", "power limit"]
    assert "98.70 TFLOP/s of model arithmetic on each device: MFU 31.6&#8239;%, causal 30.1" in (
        results.report()
    )


def test_speed_is_compared_with_the_limit_that_was_planned(results, tmp_path):
    step = step_of_benchmark({}, "124M", "NVIDIA A100-SXM4-40GB", nodes=1, gpus_per_node=4)
    known = Compiled(2**30, 0.1, 0.05, tokens_per_second=120000.0, mfu=0.5)
    keep(step, known, folder_of(str(tmp_path)))
    results.site.write_text(yaml.safe_dump(SITE | {"scratch": str(tmp_path)}))
    results.add(benchmark("train", [tokens(90000.0)]))
    assert re.search(r"%; 75\.?0*&#8239;% of the highest speed", results.report())
    results.add(benchmark("train", [tokens(90000.0)], options={"remat": "dots"}))
    assert "highest speed" not in results.report()


def test_thousand_cases(results):
    cases = [{"dtype": "tf32", "shape": f"{k}"} for k in range(1000)]
    values = [100.0 + (k * 7919) % 1000 for k in range(1000)]
    found = [measurement(*each, rounds=2) for each in zip(cases, values, strict=True)]
    found[1] = replace(found[1], failed="it broke")
    found.append(CaseResult({"dtype": "float8"}, skipped="no float8"))
    results.add(benchmark("compute", found))
    text = results.report()
    assert text.count("<svg") == 1
    assert len(text) < 1_000_000
    assert text.count('<th scope="row">compute tf32') == 1000
    assert "Worst: compute tf32 0, 100.0 TFLOP/s" in text
    assert "<summary>Table of all 1000</summary>" in text


def test_many_groups_are_not_all_plotted(results):
    found = [measurement({"k": k}, quantity=f"q{k}") for k in range(benchmarks.MAX_PLOTS + 5)]
    results.add(benchmark("io", found))
    assert results.report().count("<svg") == benchmarks.MAX_PLOTS


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
    # Sizes are a factor apart, and so are their positions.
    points = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+ L ([\d.]+) ', svg)
    first, second, third = map(float, points[-1])
    assert second - first == pytest.approx(third - second, abs=0.01)
    assert len(rows(section(part, "<details><summary>Table of all 16"))) == 17
    assert "grey" not in part
    assert "collective-nodes=1 all_gather 4 KiB" in part


def test_each_formula_names_its_cases(results):
    copy = bandwidth("copy", 1300.0, formula="2 S / t")
    results.add(benchmark("memory", [copy, bandwidth("triad", 1250.0), bandwidth("add", 1.0)]))
    shown = "<code>2 S / t</code> (memory copy); <code>3 S / t</code> (memory triad; memory add)."
    assert shown in results.report()


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
    failed = replace(tokens(200.0), failed="it broke")
    results.add(benchmark("train", [failed], options=first), nodes=4)
    assert "scaling" not in results.report()


def test_roofline(results):
    """At the best bandwidth of a kernel, not of a transfer, and the best credible peak."""
    compute = [
        measurement(FLOAT32 | {"shape": "1x1x1"}, 18.0, intensity=1365.0, flops_per_unit=1.0),
        measurement(FLOAT32 | {"shape": "2x2x2"}, 99.0, intensity=1365.0, flops_per_unit=1.0),
        measurement({"dtype": "bfloat16"}, 250.0, intensity=2730.0, flops_per_unit=1.0),
    ]
    memory = [
        bandwidth("copy", 1300.0),
        bandwidth("triad", 1250.0, 1 / 6),
        bandwidth("host to device", 9000.0),
    ]
    train = tokens(90000.0, intensity=90.0, flops_per_unit=0.001)
    results.add(benchmark("compute", compute), benchmark("memory", memory))
    results.add(benchmark("train", [train]), name="other")
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


@pytest.mark.parametrize("rounds", [1, 10])
def test_implausible_values_alone_have_a_plot(results, rounds):
    """None of them is the best."""
    results.add(benchmark("compute", [measurement(FLOAT32, 360.0, rounds)]))
    text = results.report()
    assert "<dd>compute float32" not in header(text)
    assert "<svg" in section(text, "<h3>compute")
    assert "Higher is better" in section(text, "<h3>compute")
