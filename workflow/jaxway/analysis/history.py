"""The history of all benchmarks, and the comparison of two images, commits, dates, or two
benchmarks that took turns.

A folder of Parquet files, one for each result, which appear by rename: two runs that append at
once lose nothing, and a killed one leaves no half file. Ask it anything with DuckDB:

    jaxway query 'select benchmark, "case", median from history'
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from jaxway import files
from jaxway.analysis import references, stats

Json = dict[str, Any]
COLUMNS = {
    "time": "timestamp",
    "site": "varchar",
    "nodes": "varchar",
    "node_count": "integer",
    "devices": "integer",
    "device_kind": "varchar",
    "image": "varchar",
    "digest": "varchar",
    "commit": "varchar",
    "jax": "varchar",
    "driver": "varchar",
    "job": "varchar",
    "transports": "varchar",
    "benchmark": "varchar",
    "program": "varchar",
    "options": "json",
    "case": "json",
    "quantity": "varchar",
    "unit": "varchar",
    "higher_is_better": "boolean",
    "median": "double",
    "low": "double",
    "high": "double",
    "rounds": "double[]",
    "samples": "double[][]",
    "per_device": "double[]",
}
# What the same value of two nodes, or of two runs, has in common.
PLACE = ("site", "device_kind", "node_count", "devices")
CASE = ("program", "case", "quantity", "unit", "higher_is_better")
SAME = (*PLACE, *CASE, "options", "digest", "transports")
# A benchmark's name stands for its newest options: the same name may have had others.
VERSION = """case when exists (from history where benchmark = $v)
    then benchmark = $v
        and options = (select arg_max(options, time) from history where benchmark = $v)
    when exists (from history where image = $v) then image = $v
    else starts_with(digest, $v) or starts_with(digest, 'sha256:' || $v)
    or starts_with("commit", $v)
    or starts_with(strftime(time, '%Y-%m-%dT%H:%M:%SZ'), replace($v, ' ', 'T')) end"""
MARGIN = 0.02  # a smaller difference is none that anybody acts on


def rows_of(result: Json) -> list[Json]:
    """A row for each value of an allocation's result."""
    rows = []
    for benchmark in result["benchmarks"]:
        for found in benchmark["measurements"]:
            if "median" not in found or "failed" in found:
                continue
            low, high = found["interval"] or (None, None)
            values = {
                **benchmark["provenance"],
                **(benchmark["provenance"]["container"] or {}),
                **found,
                "time": benchmark["provenance"]["time"],
                "transports": " ".join(sorted(benchmark["transports"])),
                "node_count": result["allocation"]["nodes"],
                "benchmark": benchmark["name"],
                "program": benchmark["program"],
                "options": json.dumps(benchmark["options"], sort_keys=True),
                "case": json.dumps(found["case"]),
                "low": low,
                "high": high,
            }
            rows.append({column: values.get(column) for column in COLUMNS})
    return rows


def file_of(store: Path, result: Path) -> Path:
    """Where the history keeps a result."""
    return store / f"{hashlib.sha256(result.read_bytes()).hexdigest()[:16]}.parquet"


def add(store: Path, result: Path) -> None:
    """Append a result; one that is there already stays as it is."""
    rows = rows_of(json.loads(result.read_text()))
    file = file_of(store, result)
    if not rows or file.exists():
        return
    store.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with duckdb.connect() as database:
        columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        database.execute(f"create table history ({columns})")
        marks = ", ".join("?" * len(COLUMNS))
        database.executemany(
            f"insert into history values ({marks})", [[*row.values()] for row in rows]
        )
        database.execute(f"copy history to '{quoted(part)}' (format parquet)")
    files.atomic_replace({}, {file: part})


def quoted(path: Path) -> str:
    """A path inside a string of SQL."""
    return str(path).replace("'", "''")


def opened(store: Path, without: Sequence[Path] = ()) -> duckdb.DuckDBPyConnection | None:
    """A connection with the view ``history`` of all files but some; None if there are none."""
    files = sorted(set(store.glob("*.parquet")) - set(without))
    if not files:
        return None
    database = duckdb.connect()
    names = ", ".join(f"'{quoted(file)}'" for file in files)
    database.execute(
        "create view history as "
        f"from read_parquet([{names}], union_by_name = true, filename = 'run')"
    )
    return database


def like(database: duckdb.DuckDBPyConnection, row: Json, columns: Sequence[str]) -> list[tuple]:
    """What the history has of the same value as ``row``, on whatever node, in these columns."""
    same = " and ".join(f'"{name}" is not distinct from ${name}' for name in SAME)
    query = f"select {', '.join(columns)} from history where {same}"
    return database.execute(query, {name: row[name] for name in SAME}).fetchall()


Rounds = dict[str, dict[str, list[float]]]  # by run and benchmark


def versions(
    database: duckdb.DuckDBPyConnection, version: str, keys: Sequence[str]
) -> dict[tuple, Rounds]:
    """The best sample of each round, of each run of a version, by the values' ``keys``."""
    columns = ", ".join(f'"{name}"' for name in keys)
    more = "run, benchmark, samples, higher_is_better"
    query = f"select {columns}, {more} from history where {VERSION}"
    found: dict[tuple, Rounds] = {}
    rows = database.execute(query, {"v": version}).fetchall()
    for *key, run, benchmark, samples, higher_is_better in rows:
        best = stats.best(samples, higher_is_better)
        found.setdefault(tuple(key), {}).setdefault(run, {})[benchmark] = best
    return found


def together(rounds: dict[str, list[float]]) -> list[float]:
    """All rounds of a run, of one benchmark after the other."""
    return [x for name in sorted(rounds) for x in rounds[name]]


def compare(database: duckdb.DuckDBPyConnection, a: str, b: str, margin: float) -> int:
    """Print how B compares with A; the number of values in which B is slower.

    Rounds of A and B that took turns in runs that both are in are observations. Where there are no
    such runs, a run is one observation: its rounds have the hour and the node in common.
    """
    names = {name for (name,) in database.execute("select benchmark from history").fetchall()}
    # Two benchmarks by name may differ in their options; two images or commits may not.
    keys = [*PLACE, *CASE] if {a, b} <= names else [*PLACE, *CASE, "options"]
    one, other = versions(database, a, keys), versions(database, b, keys)
    for version, found in ((a, one), (b, other)):
        if not found:
            files.fail(
                f"nothing of {version} in the history: give a benchmark's name, an image, or the "
                "beginning of a digest, a commit or a time"
            )
    common = sorted(one.keys() & other.keys(), key=str)
    if not common:
        files.fail(
            f"{a} and {b} have no value in common: of the same program, options, site and devices"
        )
    if any(one[k][run].keys() & other[k].get(run, {}) for k in common for run in one[k]):
        files.fail(f"{a} and {b} have runs in common: choose them such that each is of one only")
    slower = 0
    print(f"{'value':48} {'B / A':>6}  {'95 % interval':14}  {'of':16}  verdict")
    for key in common:
        row, mine, theirs = dict(zip(keys, key, strict=True)), one[key], other[key]
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            before, after = (
                [x for run in shared for x in together(v[run])] for v in (mine, theirs)
            )
        else:
            before, after = (
                [statistics.median(together(run)) for run in v.values()] for v in (mine, theirs)
            )
        said = stats.compare(before, after, row["higher_is_better"], margin)
        place = f"{row['node_count']}x{row['devices'] // row['node_count']}"
        label = references.label(f"{place} {row['program']}", json.loads(row["case"]))
        between = "{:.3f} to {:.3f}".format(*said.interval) if said.interval else "none"
        what = f"{len(before)} and {len(after)} {'rounds' if shared else 'runs'}"
        print(f"{label:48} {said.ratio:6.3f}  {between:14}  {what:16}  {said.verdict}")
        slower += said.verdict == "slower"
    return slower


def configure_record(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("results", type=Path, nargs="+", help="results of benchmarks")


def run_record(args: argparse.Namespace) -> None:
    for result in args.results:
        add(args.store, result)


def configure_compare(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    for name in ("a", "b"):
        text = "a benchmark's name, an image, or the beginning of its digest, a commit or a time"
        parser.add_argument(name, help=text)
    parser.add_argument("--margin", type=float, default=MARGIN, help="share that counts")


def run_compare(args: argparse.Namespace) -> None:
    with reading(args.store) as database:
        slower = compare(database, args.a, args.b, args.margin)
    sys.exit(bool(slower))


def configure_query(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("sql", help="a query of the table `history`")


def run_query(args: argparse.Namespace) -> None:
    with reading(args.store) as database:
        if found := database.sql(args.sql):
            found.show(max_rows=10**6, max_width=10**4)


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=Path("history"), help="folder of the history")


@contextlib.contextmanager
def reading(store: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The history, of which there must be one; what DuckDB refuses ends the program."""
    database = opened(store)
    if not database:
        files.fail(f"nothing in {store} yet: run benchmarks first, or add results/benchmark/*.json")
    try:
        yield database
    except duckdb.Error as error:
        files.fail(" ".join(str(error).split()))
