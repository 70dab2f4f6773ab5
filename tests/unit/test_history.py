"""The history: nothing is lost or half, and versions are compared as they were run."""

import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from jaxway import cli
from jaxway.analysis import history
from jaxway_shared.benchmark import CaseResult
from jaxway_shared.errors import UserError
from results import DIGEST, allocation, benchmark, measured, write

FASTER, SLOWER = [110.0] * 10, [90.0] * 10
USUAL = [99.0, 100, 101, 102, 98, 100, 103, 97, 100, 100]


@pytest.fixture
def store(tmp_path):
    """A folder whose name is what a name can be."""
    return tmp_path / "bob's history"


@pytest.fixture
def program(store, capsys):
    """Run a command; its output, and its exit code or error."""

    def run(*words):
        command, *rest = map(str, words)
        run, args = cli.parse([command, f"--store={store}", *rest])
        try:
            run(args)
        except SystemExit as stop:
            return capsys.readouterr().out, stop.code
        except UserError as error:
            return capsys.readouterr().out, error.line()
        return capsys.readouterr().out, 0

    return run


@pytest.fixture
def add(store, tmp_path):
    """Append results, each of a run of its own."""
    number = itertools.count()

    def run(*benchmarks):
        result = allocation(*benchmarks)
        history.add(store, write(tmp_path / "result.json", result, next(number)))

    return run


def connect(store):
    database = history.connect(store)
    assert database
    return database


def count(store):
    return connect(store).execute("select count(*), count(distinct run) from history")


def test_each_result_is_kept_once(store, tmp_path):
    result = allocation(benchmark(measured(USUAL), measured(USUAL, {"kernel": "add"})))
    file = write(tmp_path / "result.json", result)
    history.add(store, file)
    (kept,) = store.iterdir()
    before = kept.stat().st_ino
    history.add(store, file)
    assert [x.stat().st_ino for x in store.iterdir()] == [before]
    assert count(store).fetchall() == [(2, 1)]


def test_row_has_all_columns(store, add):
    add(benchmark(measured(USUAL, per_device=[1.0, 2.0]), options={"b": 1, "a": [2]}))
    database = connect(store)
    found = database.execute("select * from history")
    row = dict(zip([x[0] for x in found.description], found.fetchall()[0], strict=True))
    assert str(row.pop("time")) == "2026-01-02 03:04:05"
    assert Path(row.pop("run")).parent == store
    assert row == {
        "site": "jureca",
        "nodes": "jrc0101",
        "node_count": 1,
        "devices": 4,
        "device_kind": "NVIDIA A100-SXM4-40GB",
        "image": "docker://nvcr.io/nvidia/jax:26.06-py3",
        "digest": DIGEST,
        "commit": "c0ffee12",
        "jax": "0.10.2",
        "driver": None,
        "job": None,
        "transports": "",
        "benchmark": "bench",
        "program": "memory",
        "options": '{"a": [2], "b": 1}',
        "case": '{"kernel": "triad"}',
        "quantity": "q",
        "unit": "GB/s",
        "higher_is_better": True,
        "median": 100,
        "low": 98,
        "high": 102,
        "rounds": USUAL,
        "samples": [[value] for value in USUAL],
        "per_device": [1, 2],
    }


def test_cases_without_value_are_left_out(store, add):
    case: dict[str, Any] = {"kernel": "add"}
    cases = [CaseResult(case, failed="because"), CaseResult(case, skipped="because")]
    add(benchmark(*cases, measured(USUAL, failed="in its last round")))
    add(benchmark(failed="it broke", provenance=None))
    assert not store.exists()


def test_result_without_container(store, add):
    add(benchmark(measured(USUAL), container=None))
    assert connect(store).execute("select digest from history").fetchall() == [(None,)]


def test_concurrent_writers_lose_nothing(store, tmp_path):
    code = "import pathlib, sys\nfrom jaxway.analysis import history\n"
    code += "store, *results = map(pathlib.Path, sys.argv[1:])\n"
    code += "for result in results: history.add(store, result)"
    files = [tmp_path / f"{k}.json" for k in range(6)]
    for k, file in enumerate(files):
        write(file, allocation(benchmark(measured([k]))))
    # Two of the results are in both.
    shares = (files[:4], files[2:])
    running = [subprocess.Popen([sys.executable, "-c", code, store, *share]) for share in shares]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    rows = connect(store).execute("select median from history order by 1").fetchall()
    assert rows == [(k,) for k in range(6)]
    assert len([*store.iterdir()]) == 6


def test_killed_writer_leaves_no_partial_file(store, add, tmp_path):
    add(benchmark(measured(USUAL)))
    file = write(tmp_path / "result.json", allocation(benchmark(measured(FASTER))))
    code = (
        "import os, pathlib, sys\nfrom jaxway import files\nfrom jaxway.analysis import history\n"
    )
    code += "files.atomic_replace = lambda *_: os.kill(os.getpid(), 9)\n"
    code += "history.add(*map(pathlib.Path, sys.argv[1:]))"
    killed = subprocess.run([sys.executable, "-c", code, store, file])
    assert killed.returncode == -signal.SIGKILL
    (part,) = store.glob("*.part")
    assert count(store).fetchall() == [(1, 1)]
    part.write_bytes(part.read_bytes()[:100])
    assert count(store).fetchall() == [(1, 1)]
    history.add(store, file)
    assert count(store).fetchall() == [(2, 2)]


# Columns of the first files, which users have: they stay readable under these names.
FIRST_COLUMNS = """
    "time" timestamp, site varchar, nodes varchar, node_count integer, devices integer,
    device_kind varchar, image varchar, digest varchar, "commit" varchar, jax varchar,
    driver varchar, job varchar, transports varchar, benchmark varchar, program varchar,
    options json, "case" json, quantity varchar, unit varchar, higher_is_better boolean,
    median double, low double, high double, rounds double[], samples double[][],
    per_device double[]
"""


def add_first_file(store):
    """A file as the first version wrote it, of a value like that of ``benchmark``."""
    store.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as database:
        database.execute(f"create table history ({FIRST_COLUMNS})")
        database.execute(
            """insert into history by name select
            timestamp '2025-12-24 00:00:00' as time, 'jureca' as site, 'jrc0101' as nodes,
            1 as node_count, 4 as devices, 'NVIDIA A100-SXM4-40GB' as device_kind,
            'docker://nvcr.io/nvidia/jax:25.10-py3' as image, '' as transports,
            'bench' as benchmark, 'memory' as program, '{}' as options,
            '{"kernel": "triad"}' as case, 'q' as quantity, 'GB/s' as unit,
            true as higher_is_better, 50 as median, [50] as rounds, [[50]] as samples"""
        )
        name = history.quote(store / "0123456789abcdef.parquet")
        database.execute(f"copy history to '{name}' (format parquet)")


def test_files_of_the_first_version_are_read(program, add, store):
    add_first_file(store)
    add(benchmark(measured(USUAL)))
    medians = connect(store).execute("select median from history order by 1").fetchall()
    assert medians == [(50,), (100,)]
    text, _ = program("compare", OLD, NEW)
    assert compared(text)[0][:2] == ("1x4 memory triad", 2.0)
    assert set(re.findall(r"(\w+)\"? \w+[,\[\n]", FIRST_COLUMNS)) <= history.COLUMNS.keys()


def compared(text):
    """Columns of each line of a comparison: value, ratio, interval, of, verdict."""
    return [
        (
            line[:48].rstrip(),
            float(line[49:55]),
            line[57:71].strip(),
            line[73:89].strip(),
            line[91:],
        )
        for line in text.splitlines()[1:]
    ]


OLD, NEW = "docker://nvcr.io/nvidia/jax:25.10-py3", "docker://nvcr.io/nvidia/jax:26.06-py3"


@pytest.mark.parametrize(
    ("change", "a", "b"),
    [
        ({"image": "docker://old"}, "docker://old", NEW),
        ({"digest": "sha256:12345678"}, "sha256:1234", "sha256:abab"),
        ({"digest": "sha256:12345678"}, "1234", "abab"),
        ({"commit": "badc0de5"}, "badc0de", "c0ffee1"),
        ({"time": "2025-12-24T00:00:00Z"}, "2025-12", "2026-01-02"),
        ({"name": "slow"}, "slow", "bench"),
        ({"name": "slow", "options": {"batch": 1}}, "slow", "bench"),
    ],
)
def test_versions_by_runs(program, add, change, a, b):
    """Runs at other times: the rounds of one say nothing of the next."""
    for k in range(4):
        add(benchmark(measured([100.0 + k, 100, 100])))
        add(benchmark(measured([150.0 + k, 150, 150]), **change))
    text, code = program("compare", a, b)
    assert compared(text) == [
        ("1x4 memory triad", 0.667, "0.667 to 0.667", "4 and 4 runs", "slower")
    ]
    assert code == 1
    text, code = program("compare", b, a)
    assert compared(text)[0][-1] == "faster" and code == 0
    assert compared(program("compare", a, b, "--margin=0.5")[0])[0][-1] == "no difference"


def test_too_few_runs(program, add):
    for k in range(3):
        add(benchmark(measured(USUAL)))
        add(benchmark(measured(SLOWER), image=f"{OLD}", digest=f"sha256:{k}"))
    text, code = program("compare", NEW, OLD)
    assert compared(text)[0][2:] == ("none", "3 and 3 runs", "too few: 3 and 3") and code == 0


def test_interleaved_rounds_need_one_run(program, add):
    """One run is enough."""
    slow = [0.5 * value for value in USUAL]
    add(benchmark(measured(USUAL), name="one"), benchmark(measured(slow), name="two"))
    text, code = program("compare", "one", "two")
    ((label, ratio, _, count, verdict),) = compared(text)
    assert (label, count, verdict) == ("1x4 memory triad", "10 and 10 rounds", "slower")
    assert ratio == pytest.approx(0.5, rel=0.01) and code == 1


def test_separate_runs_are_ignored_beside_interleaved_ones(program, add):
    add(benchmark(measured(USUAL), name="one"), benchmark(measured(USUAL), name="two"))
    for _ in range(4):
        add(benchmark(measured(SLOWER), name="two"))
    text, code = program("compare", "one", "two")
    assert compared(text)[0][3:] == ("10 and 10 rounds", "no difference") and code == 0


def test_best_sample_of_each_round_counts(program, add):
    """Others only ever add time."""
    disturbed = [[value, value / 3, value / 2] for value in USUAL]
    add(
        benchmark(measured(USUAL), name="one"),
        benchmark(measured(USUAL, samples=disturbed), name="two"),
    )
    assert compared(program("compare", "one", "two")[0])[0][1] == 1.0


@pytest.mark.parametrize("name", ["ab", "c0", "2026"])
def test_name_may_look_like_a_prefix(program, add, name):
    """Of the digest, the commit or the time, which all benchmarks of a run share."""
    add(benchmark(measured(SLOWER), name="slow"), benchmark(measured(USUAL), name=name))
    assert compared(program("compare", name, "slow")[0])[0][3:] == ("10 and 10 rounds", "slower")


def test_lower_is_better(program, add):
    seconds: dict[str, Any] = {"unit": "s", "higher_is_better": False}
    add(
        benchmark(measured(USUAL, **seconds), name="one"),
        benchmark(measured(SLOWER, **seconds), name="two"),
    )
    assert compared(program("compare", "one", "two")[0])[0][-1] == "faster"
    assert program("compare", "two", "one")[1] == 1


def test_each_value_is_compared_with_itself(program, add):
    cases = [{"kernel": "triad"}, {"kernel": "add"}]
    add(
        benchmark(*[measured(USUAL, case) for case in cases], name="one"),
        benchmark(measured(FASTER, cases[0]), measured(SLOWER, cases[1]), name="two"),
    )
    found = {row[0]: row[-1] for row in compared(program("compare", "one", "two")[0])}
    assert found == {"1x4 memory triad": "faster", "1x4 memory add": "slower"}


@pytest.mark.parametrize(
    "other", [{"options": {"megabytes": 1}}, {"devices": 8}, {"device_kind": "H100"}]
)
def test_versions_without_common_values_are_refused(program, add, other):
    add(benchmark(measured(USUAL)))
    add(benchmark(measured(USUAL), image=OLD, **other))
    message = f"{NEW} and {OLD} have no value in common: of the same program, options, "
    message += "site and devices [JW472]"
    assert program("compare", NEW, OLD) == ("", message)


def test_name_means_its_newest_options(program, add):
    """The same name had others before; a time may be written with a space."""
    add(
        benchmark(measured(USUAL), name="one", time="2026-01-01T00:00:00Z"),
        benchmark(measured(SLOWER), name="two", time="2026-01-01T00:00:00Z", options={"size": 1}),
    )
    add(benchmark(measured(USUAL), name="one"), benchmark(measured(USUAL), name="two"))
    assert compared(program("compare", "one", "two")[0])[0][3:] == (
        "10 and 10 rounds",
        "no difference",
    )
    text, _ = program("compare", "2026-01-01 00:00", "2026-01-02 03:04")
    assert compared(text)[0][3] == "1 and 1 runs"


def test_overlapping_versions_are_refused(program, add):
    """A part of A would be compared with itself."""
    for _ in range(4):
        add(benchmark(measured(USUAL)))
    _, error = program("compare", "2026", "2026-01")
    assert error.startswith("2026 and 2026-01 have runs in common: ")


def test_unknown_version_is_refused(program, add, store):
    add(benchmark(measured(USUAL)))
    message = "nothing of v2 in the history: give a benchmark's name, an image, or the "
    message += "beginning of a digest, a commit or a time [JW471]"
    assert program("compare", NEW, "v2") == ("", message)


@pytest.mark.parametrize("words", [("compare", "one", "two"), ("query", "select 1")])
def test_empty_history_is_refused(program, store, words):
    message = f"nothing in {store} yet: run benchmarks first, or `jaxway record "
    message += "results/benchmark/*.json` [JW470]"
    assert program(*words) == ("", message)


def test_partial_files_are_no_history(program, store):
    store.mkdir()
    (store / "0123.45.part").write_bytes(b"PAR1")
    assert "yet: run benchmarks first" in program("query", "select 1")[1]


def test_query(program, add, tmp_path):
    file = write(tmp_path / "result.json", allocation(benchmark(measured(USUAL))))
    assert program("record", file, file) == ("", 0)
    text, code = program("query", "select nodes, median from history")
    assert "jrc0101" in text and "100.0" in text and code == 0


@pytest.mark.parametrize("sql", ["select speed from history", "selec", "select '"])
def test_invalid_sql_is_refused(program, add, sql):
    add(benchmark(measured(USUAL)))
    text, message = program("query", sql)
    assert (
        text == "" and "Error" in message and message.endswith(" [JW473]") and "\n" not in message
    )


def test_sql_without_result(program, add):
    add(benchmark(measured(USUAL)))
    assert program("query", "create table x (y integer)")[1] == 0


def test_missing_result(program):
    with pytest.raises(FileNotFoundError):  # jaxway makes a sentence of it
        program("record", "nothing.json")
