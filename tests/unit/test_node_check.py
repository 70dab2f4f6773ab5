"""Nodes compared with each other, with the history and with the site's references."""

import pytest
import yaml
from jaxway import cli
from jaxway.analysis import history
from jaxway.analysis.node_check import NodeCheck
from jaxway_shared.benchmark import CaseResult
from jaxway_shared.errors import UserError
from results import SITE, allocation, benchmark, measured, write
from test_references import REFERENCE

FAST = [1400.0] * 3


def of_node(node, rounds, **more):
    """Result of a node whose memory has this bandwidth."""
    return allocation(benchmark(measured(rounds, **more), nodes=node), node=node)


@pytest.fixture
def check(tmp_path, capsys):
    """Check nodes by their results: what is found, and the lines for a person."""

    def run(*results, references=(), missing=()):
        files = [write(tmp_path / f"{k}.json", result) for k, result in enumerate(results)]
        site = SITE | {"references": [*references]}
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
        flags = {"out": "out.json", "history": "history", "site": "site.yaml"}
        words = [f"--{name}={tmp_path / file}" for name, file in flags.items()]
        nodes = [result.allocation.node for result in results]
        words += ["--nodes", *nodes, *missing, "--results", *map(str, files)]
        run, args = cli.parse(["check-nodes", *words])
        run(args)
        return NodeCheck.read(tmp_path / "out.json"), capsys.readouterr().out.split("\n")

    return run


def remember(folder, *results):
    for k, result in enumerate(results):
        history.add(folder / "history", write(folder / "result.json", result, k))


def nodes(*values):
    return [of_node(f"n{k}", [value] * 3) for k, value in enumerate(values, 1)]


def test_one_slow_node_of_three(check):
    found, lines = check(*nodes(1400.0, 1120.0, 1410.0))
    assert found.exclude == ["n2"]
    (problem,) = found.nodes["n2"]
    assert problem.slower_by == pytest.approx(0.2)
    assert lines == [
        "n1               no problem found",
        "n2               bench triad                              20% slower than the median",
        "n3               no problem found",
        "exclude: [n2]",
        "",
    ]


def test_two_slow_nodes_of_five(check):
    found, _ = check(*nodes(700.0, 1400.0, 1410.0, 800.0, 1405.0))
    assert found.exclude == ["n1", "n4"]


def test_equal_nodes(check):
    found, lines = check(*nodes(1400.0, 1390.0, 1410.0))
    assert found.exclude == []
    assert lines[-2] == "No node to exclude."


def test_lower_is_better(check):
    seconds = [2.0, 2.5, 2.01]
    results = [of_node(f"n{k}", [s], higher_is_better=False) for k, s in enumerate(seconds)]
    assert check(*results)[0].exclude == ["n1"]


def test_two_nodes_are_too_few(check):
    found, lines = check(*nodes(1400.0, 700.0))
    assert found.exclude == []
    assert "It takes 3 values to find a slow node, and here are 2: " in lines[-2]
    assert "No node to exclude." not in lines


def test_two_nodes_and_earlier_runs(check, tmp_path):
    remember(tmp_path, *[of_node("n9", [1400.0 + k] * 3) for k in range(3)])
    found, lines = check(*nodes(1400.0, 700.0))
    assert lines[-2] == "exclude: [n2]"
    assert sorted(found.values[0].earlier) == [1400, 1401, 1402]


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "sha256:cd"},
        {"device_kind": "NVIDIA A100-SXM4-80GB"},
        {"site": "elsewhere"},
        {"devices": 1},
        {"options": {"megabytes": 7}},
        {"program": "compute"},
    ],
)
def test_other_earlier_runs_are_ignored(check, tmp_path, other):
    earlier = allocation(benchmark(measured([700.0]), **other))
    remember(tmp_path, *[earlier] * 4)
    found, _ = check(*nodes(1400.0, 1400.0, 700.0))
    assert found.values[0].earlier == []
    assert found.exclude == ["n3"]


def test_node_is_not_compared_with_itself(check, tmp_path):
    """Its result may be in the history already."""
    results = nodes(1400.0, 700.0)
    check(*results)
    for k in range(len(results)):
        history.add(tmp_path / "history", tmp_path / f"{k}.json")
    found, _ = check(*results)
    assert found.values[0].earlier == []


def test_node_without_result_is_excluded(check):
    found, lines = check(*nodes(1400.0, 1400.0, 1400.0), missing=["n4"])
    assert found.exclude == ["n4"]
    assert any(line.split()[0] == "n4" and "its job left no result" in line for line in lines[:-1])


def test_one_slow_gpu_of_four(check):
    """The median of all GPUs is as it is on the other nodes."""
    slow = of_node("n1", FAST, per_device=[1400.0, 1400.0, 700.0, 1400.0])
    equal = [of_node(f"n{k}", FAST, per_device=[1400.0] * 4) for k in (2, 3)]
    found, _ = check(slow, *equal)
    assert found.exclude == ["n1"]
    assert found.nodes["n1"][0].slower_by == pytest.approx(0.5)


def test_failed_benchmark_excludes_node(check):
    broken = allocation(benchmark(failed="it broke", provenance=None), node="n1")
    found, lines = check(broken, *nodes(1400.0, 1400.0, 1400.0)[1:])
    assert found.exclude == ["n1"]
    assert lines[0].split(maxsplit=2) == ["n1", "bench", "failed: it broke"]


def test_failed_case_excludes_node(check):
    """A check that finds a wrong number is of one case."""
    broken = allocation(benchmark(CaseResult({"kernel": "triad"}, failed="wrong")), node="n1")
    found, lines = check(broken, *nodes(1400.0, 1400.0, 1400.0)[1:])
    assert found.exclude == ["n1"]
    assert lines[0].split(maxsplit=3) == ["n1", "bench", "triad", "failed: wrong"]


def test_nodes_below_reference_are_excluded(check):
    found, lines = check(*nodes(700.0, 700.0, 700.0), references=[REFERENCE])
    assert found.exclude == ["n1", "n2", "n3"]
    assert lines[0].endswith("slow: 700 GB/s, expected 1285 to 1555 [JW460]")


def test_implausible_value_excludes_no_node(check):
    assert check(*nodes(1600.0, 1600.0, 1600.0), references=[REFERENCE])[0].exclude == []


def test_no_nodes_are_refused(check):
    with pytest.raises(UserError, match=r"no nodes to check: set node_check\.nodes"):
        check()
