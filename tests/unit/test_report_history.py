"""The report's parts about the history, about nodes, and about cost."""

import re
from dataclasses import replace
from typing import Any

import pytest
from jaxway.analysis import history
from jaxway.analysis.node_check import NodeCheck, NodeValue, Problem
from jaxway.slurm.accounting import Cost, JobUsage
from report_results import PROVENANCE, Results, benchmark, measurement, rows, section
from results import write


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def run_at(results, day, **medians):
    """A run of a day, which the history then knows."""
    provenance = replace(PROVENANCE, time=f"2026-11-{day:02}T10:00:00Z")
    found = [measurement({"dtype": key, "batch": 1}, value) for key, value in medians.items()]
    history.add(results.history, results.add(benchmark("compute", found, provenance=provenance)))


def test_history_of_one_run_is_not_shown(results):
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


def test_history_is_per_site_and_options(results):
    run_at(results, 1, tf32=100.0)
    found = [measurement({"dtype": "tf32", "batch": 1}, 50.0)]
    later = replace(PROVENANCE, time="2026-11-02T10:00:00Z")
    elsewhere = replace(later, site="profiles/x")
    for changes in ({"provenance": elsewhere}, {"options": {"repeats": 9}}):
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
    case: dict[str, Any] = {"dtype": "tf32"}
    by_node = {"jrc0101": 2.04, "jrc0102": 1.0}
    value = NodeValue("compute", case, "q", "TFLOP/s", True, by_node, earlier=[], median=2.0)
    slow, failed = Problem("compute", case, slower_by=0.5), Problem("io", {}, failed="no disk")
    check = NodeCheck(
        nodes={"jrc0101": [], "jrc0102": [slow, failed], "jrc0103": [failed]},
        values=[value],
        exclude=["jrc0102", "jrc0103"],
    )
    file = write(results.folder / "node_check.json", check)
    results.more = [f"--node-check={file}"]
    part = section(results.report(), "<h3>Nodes")
    assert rows(part) == [
        ["node", "verdict", "compute tf32", "reasons"],
        ["jrc0101", "✓", "102.0&#8239;%", ""],
        ["jrc0102", "✗ problem", "50.0&#8239;%", "1 slow value; io: no disk"],
        ["jrc0103", "✗ problem", "\N{EM DASH}", "io: no disk"],
    ]
    assert '<td class="n bad">50.0' in part
    assert '<td class="n good">102.0' in part
    assert '<td class="n ">\N{EM DASH}' in part
    assert re.search(r"<pre[^>]*>exclude: \[jrc0102, jrc0103\]</pre>", part)
    write(file, replace(check, nodes={"jrc0101": []}, exclude=[]))
    assert "<pre" not in section(results.report(), "<h3>Nodes")


def test_cost(results):
    def job(name, run, seconds, queue_seconds, no_progress=False):
        return JobUsage(
            job=f"{name} {run}",
            name=name,
            run=f"run{run}",
            state="FAILED",
            submitted=f"2026-01-0{run}T10:00:00",
            queue_seconds=queue_seconds,
            seconds=seconds,
            limit=None,
            nodes=2,
            sharing=1,
            no_progress=no_progress,
        )

    first = job("smoke_test", 1, 18, 5)
    jobs = (first, job("train_run a", 1, 3600, 0, True), job("train_run a", 2, 36, 60))
    file = write(results.folder / "cost.json", Cost(128, jobs, None))
    results.more = [f"--cost={file}"]
    part = section(results.report(), "<h2>Cost")
    assert "3 jobs used 2.030 node-h = 259.8 core-h, with 128 cores a node" in part
    assert "2.000 node-h of it by jobs that failed without progress" in part
    heads = ["jobs", "node-h", "without progress, node-h", "longest in the queue, s"]
    assert rows(part) == [
        ["job", *heads],
        ["smoke_test", "1", "0.01000", "0", "5"],
        ["train_run a", "2", "2.020", "2.000", "60"],
        ["run that started", *heads],
        ["2026-01-01 10:00:00", "2", "2.010", "2.000", "5"],
        ["2026-01-02 10:00:00", "1", "0.02000", "0", "60"],
    ]
    write(file, Cost(None, (), "Slurm did not respond"))
    part = section(results.report(), "<h2>Cost")
    assert "Slurm did not respond." in part
    assert "<table" not in part
