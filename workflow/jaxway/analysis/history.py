"""The history of all benchmarks, and the comparison of two images, commits, dates, or two
benchmarks that took turns.

A folder of Parquet files, one for each result, which appear by rename: two runs that append at
once lose nothing, and a killed one leaves no half file. Query it with DuckDB:

    jaxway query 'select benchmark, "case", median from history'

Files of all versions are read together by the names of their columns. So a column is never renamed
and never changes its meaning; a new one is null in older files.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import types
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NewType, get_args, get_origin, get_type_hints

import duckdb
from jaxway_shared.benchmark import AllocationResult, BenchmarkResult, Measurement
from jaxway_shared.errors import UserError

from jaxway import files
from jaxway.analysis import references, stats

Database = duckdb.DuckDBPyConnection
Timestamp = NewType("Timestamp", str)
Json = NewType("Json", str)
SQL_TYPES: dict[Any, str] = {
    Timestamp: "timestamp",
    Json: "json",
    str: "varchar",
    int: "integer",
    float: "double",
    bool: "boolean",
    list[float]: "double[]",
    list[list[float]]: "double[][]",
}
ALLOCATION_KEY = ("site", "device_kind", "node_count", "devices")
VALUE_KEY = ("program", "case", "quantity", "unit", "higher_is_better")
# What the same value has in common on two nodes or in two runs of the same version.
SAME_KEY = (*ALLOCATION_KEY, *VALUE_KEY, "options", "digest", "transports")
TIMELINE_KEY = ("site", "node_count", "devices", "benchmark", "unit", "options", "case")
# A benchmark's name stands for its newest options: the same name may have had others.
VERSION_CONDITION = """case when exists (from history where benchmark = $v)
    then benchmark = $v
        and options = (select arg_max(options, time) from history where benchmark = $v)
    when exists (from history where image = $v) then image = $v
    else starts_with(digest, $v) or starts_with(digest, 'sha256:' || $v)
    or starts_with("commit", $v)
    or starts_with(strftime(time, '%Y-%m-%dT%H:%M:%SZ'), replace($v, ' ', 'T')) end"""
MIN_RATIO_CHANGE = 0.02  # nobody acts on a smaller difference


@dataclass(frozen=True)
class Row:
    """A value of a result; the fields are the columns of the history."""

    time: Timestamp
    site: str | None
    nodes: str
    node_count: int
    devices: int
    device_kind: str | None
    image: str | None
    digest: str | None
    commit: str | None
    jax: str
    driver: str | None
    job: str | None
    transports: str  # sorted, with spaces between them
    benchmark: str
    program: str
    options: Json  # with sorted keys
    case: Json
    quantity: str
    unit: str
    higher_is_better: bool
    median: float
    low: float | None  # ends of the median's interval
    high: float | None
    rounds: list[float]
    samples: list[list[float]]
    per_device: list[float] | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What this has in common with the same value of other nodes and runs."""
        return tuple(getattr(self, name) for name in SAME_KEY)


def sql_type(hint: Any) -> str:
    """Type of a column."""
    if get_origin(hint) is types.UnionType:
        (hint,) = set(get_args(hint)) - {type(None)}
    return SQL_TYPES[hint]


COLUMNS = {name: sql_type(hint) for name, hint in get_type_hints(Row).items()}


def rows(result: AllocationResult) -> list[Row]:
    """A row for each value of an allocation's result."""
    return [
        row(result, benchmark, case.case, case.measurement)
        for benchmark in result.benchmarks
        for case in benchmark.cases
        if case.measurement and not case.failed
    ]


def row(
    result: AllocationResult, benchmark: BenchmarkResult, case: Any, measurement: Measurement
) -> Row:
    """The row of one value."""
    provenance = benchmark.provenance
    if not provenance:
        raise ValueError(f"{benchmark.name} has a value and no provenance")
    container = provenance.container
    low, high = measurement.interval or (None, None)
    return Row(
        time=Timestamp(provenance.time),
        site=provenance.site,
        nodes=provenance.nodes,
        node_count=result.allocation.nodes,
        devices=provenance.devices,
        device_kind=provenance.device_kind,
        image=container.image if container else None,
        digest=container.digest if container else None,
        commit=provenance.commit,
        jax=provenance.jax,
        driver=provenance.driver,
        job=provenance.job,
        transports=" ".join(sorted(benchmark.transports)),
        benchmark=benchmark.name,
        program=benchmark.program,
        options=Json(json.dumps(benchmark.options, sort_keys=True)),
        case=Json(json.dumps(case)),
        quantity=measurement.quantity,
        unit=measurement.unit,
        higher_is_better=measurement.higher_is_better,
        median=measurement.median,
        low=low,
        high=high,
        rounds=measurement.rounds,
        samples=measurement.samples,
        per_device=measurement.per_device,
    )


def file_of(store: Path, result: Path) -> Path:
    """Where the history keeps a result."""
    return store / f"{hashlib.sha256(result.read_bytes()).hexdigest()[:16]}.parquet"


def add(store: Path, result: Path) -> None:
    """Append a result; one that is there already stays as it is."""
    values = [[*vars(each).values()] for each in rows(AllocationResult.read(result))]
    file = file_of(store, result)
    if not values or file.exists():
        return
    store.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with duckdb.connect() as database:
        columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        database.execute(f"create table history ({columns})")
        marks = ", ".join("?" * len(COLUMNS))
        database.executemany(f"insert into history values ({marks})", values)
        database.execute(f"copy history to '{quote(part)}' (format parquet)")
    files.atomic_replace({}, {file: part})


def quote(path: Path) -> str:
    """A path inside a string of SQL."""
    return str(path).replace("'", "''")


def connect(store: Path, without: Sequence[Path] = ()) -> Database | None:
    """A connection with the view ``history`` of all files but some; None if there are none."""
    files = sorted(set(store.glob("*.parquet")) - set(without))
    if not files:
        return None
    database = duckdb.connect()
    names = ", ".join(f"'{quote(file)}'" for file in files)
    database.execute(
        "create view history as "
        f"from read_parquet([{names}], union_by_name = true, filename = 'run')"
    )
    return database


def same_value(database: Database, row: Row) -> list[tuple[float, list[float] | None]]:
    """Median, and those of devices, of the same value on whatever node, from the history."""
    same = " and ".join(f'"{name}" is not distinct from ${name}' for name in SAME_KEY)
    query = f"select median, per_device from history where {same}"
    return database.execute(query, dict(zip(SAME_KEY, row.key, strict=True))).fetchall()


def timelines(database: Database) -> dict[tuple[Any, ...], dict[datetime, float]]:
    """Medians over time of each value, by TIMELINE_KEY with sorted keys in options and case."""
    columns = ", ".join(f'"{name}"' for name in (*TIMELINE_KEY, "time", "median"))
    found: dict[tuple[Any, ...], dict[datetime, float]] = defaultdict(dict)
    query = f"select {columns} from history order by time"
    for *key, options, case, time, median in database.execute(query).fetchall():
        found[(*key, sort_keys(options), sort_keys(case))][time] = median
    return found


def sort_keys(text: str) -> str:
    """An object of JSON with sorted keys: the same text for the same content."""
    return json.dumps(json.loads(text), sort_keys=True)


Rounds = dict[str, list[float]]  # best samples by benchmark
Runs = dict[str, Rounds]  # by run


def runs_of(database: Database, version: str, keys: Sequence[str]) -> dict[tuple[Any, ...], Runs]:
    """The best sample of each round, of each run of a version, by the values' ``keys``."""
    columns = ", ".join(f'"{name}"' for name in keys)
    more = "run, benchmark, samples, higher_is_better"
    query = f"select {columns}, {more} from history where {VERSION_CONDITION}"
    found: dict[tuple[Any, ...], Runs] = {}
    for *key, run, benchmark, samples, higher in database.execute(query, {"v": version}).fetchall():
        found.setdefault(tuple(key), {}).setdefault(run, {})[benchmark] = stats.best(
            samples, higher
        )
    if not found:
        raise UserError(
            "JW471",
            f"nothing of {version} in the history: give a benchmark's name, an image, or the "
            "beginning of a digest, a commit or a time",
        )
    return found


def all_rounds(rounds: Rounds) -> list[float]:
    """All rounds of a run, of one benchmark after the other."""
    return [x for name in sorted(rounds) for x in rounds[name]]


@dataclass(frozen=True)
class ComparedValue:
    """A value of B compared with A's, by so many observations of each: rounds or runs."""

    name: str
    comparison: stats.Comparison
    count_a: int
    count_b: int
    observations: str

    def line(self) -> str:
        """The line that is printed, below HEADER."""
        interval = self.comparison.interval
        between = "{:.3f} to {:.3f}".format(*interval) if interval else "none"
        counts = f"{self.count_a} and {self.count_b} {self.observations}"
        ratio, verdict = self.comparison.ratio, self.comparison.verdict
        return f"{self.name:48} {ratio:6.3f}  {between:14}  {counts:16}  {verdict}"


HEADER = f"{'value':48} {'B / A':>6}  {'95 % interval':14}  {'of':16}  verdict"


def compare(database: Database, a: str, b: str, min_change: float) -> list[ComparedValue]:
    """How B compares with A in each value that both have."""
    names = {name for (name,) in database.execute("select benchmark from history").fetchall()}
    # Two benchmarks by name may differ in their options; two images or commits may not.
    options = () if {a, b} <= names else ("options",)
    keys = (*ALLOCATION_KEY, *VALUE_KEY, *options)
    runs_a, runs_b = runs_of(database, a, keys), runs_of(database, b, keys)
    common = sorted(runs_a.keys() & runs_b.keys(), key=str)
    if not common:
        raise UserError(
            "JW472",
            f"{a} and {b} have no value in common: of the same program, options, site and devices",
        )
    if any(runs_a[k][run].keys() & runs_b[k].get(run, {}) for k in common for run in runs_a[k]):
        raise UserError(
            "JW472", f"{a} and {b} have runs in common: choose them so that each run is in one only"
        )
    return [
        compare_value(dict(zip(keys, key, strict=True)), runs_a[key], runs_b[key], min_change)
        for key in common
    ]


def compare_value(key: dict[str, Any], a: Runs, b: Runs, min_change: float) -> ComparedValue:
    """How one value of B compares with A's.

    Rounds of A and B that took turns in runs that both are in are observations. Where there are no
    such runs, a run is one observation: its rounds have the hour and the node in common.
    """
    shared = sorted(a.keys() & b.keys())
    if shared:
        samples_a, samples_b = ([x for run in shared for x in all_rounds(v[run])] for v in (a, b))
    else:
        samples_a, samples_b = (
            [statistics.median(all_rounds(run)) for run in v.values()] for v in (a, b)
        )
    allocation = f"{key['node_count']}x{key['devices'] // key['node_count']}"
    return ComparedValue(
        references.case_name(f"{allocation} {key['program']}", json.loads(key["case"])),
        stats.compare(samples_a, samples_b, key["higher_is_better"], min_change),
        len(samples_a),
        len(samples_b),
        "rounds" if shared else "runs",
    )


def configure_record(parser: argparse.ArgumentParser) -> None:
    """Arguments of `jaxway record`."""
    add_store(parser)
    parser.add_argument("results", type=Path, nargs="+", help="results of benchmarks")


def run_record(args: argparse.Namespace) -> None:
    """Append results."""
    for result in args.results:
        add(args.store, result)


def configure_compare(parser: argparse.ArgumentParser) -> None:
    """Arguments of `jaxway compare`."""
    add_store(parser)
    for name in ("a", "b"):
        text = "a benchmark's name, an image, or the beginning of its digest, a commit or a time"
        parser.add_argument(name, help=text)
    parser.add_argument(
        "--margin", type=float, default=MIN_RATIO_CHANGE, help="share below which nothing differs"
    )


def run_compare(args: argparse.Namespace) -> None:
    """Print how B compares with A; exit code 1 if it is slower in a value."""
    with open_history(args.store) as database:
        values = compare(database, args.a, args.b, args.margin)
    print(HEADER, *(value.line() for value in values), sep="\n")
    sys.exit(any(value.comparison.verdict == "slower" for value in values))


def configure_query(parser: argparse.ArgumentParser) -> None:
    """Arguments of `jaxway query`."""
    add_store(parser)
    parser.add_argument("sql", help="a query of the table `history`")


def run_query(args: argparse.Namespace) -> None:
    """Print what a query finds."""
    with open_history(args.store) as database:
        if found := database.sql(args.sql):
            found.show(max_rows=10**6, max_width=10**4)


def add_store(parser: argparse.ArgumentParser) -> None:
    """The option that names the history's folder."""
    parser.add_argument("--store", type=Path, default=Path("history"), help="folder of the history")


@contextlib.contextmanager
def open_history(store: Path) -> Iterator[Database]:
    """A history that is not empty. UserError where DuckDB refuses a query."""
    database = connect(store)
    if not database:
        raise UserError(
            "JW470",
            f"nothing in {store} yet: run benchmarks first, or `jaxway record "
            "results/benchmark/*.json`",
        )
    try:
        yield database
    except duckdb.Error as error:
        raise UserError("JW473", " ".join(str(error).split())) from None
