"""What the report reads of a trace by JAX's profiler."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from jaxway.report.trace import StepTime, step_time

STREAM, OTHER_STREAM, OPERATIONS = "Stream #13(Compute)", "Stream #20(Compute)", "XLA Ops"
PROCESSES = {1: "/device:GPU:0", 2: "/device:GPU:1", 701: "/host:CPU"}


def operation(name: str, begin: float, end: float, **place: Any) -> dict[str, Any]:
    """Of a program, as XLA's profiler writes it; on the first GPU unless it is said."""
    where = {"pid": 1, "tid": 1, **place}
    arguments = {"hlo_op": name, "hlo_module": where.pop("module", "jit_train_step")}
    return {
        "ph": "X",
        "ts": begin,
        "dur": end - begin,
        "name": where.pop("kernel", "kernel"),
        "args": arguments,
        **where,
    }


def write(state: Path, events: list[dict[str, Any]], processes: dict[int, str]) -> None:
    """A trace of these events, with the names of processes and of lines."""
    file = state / "trace/plugins/profile/2026_11_26_17_25_09/vm.trace.json.gz"
    file.parent.mkdir(parents=True)
    named = [("process_name", {"pid": pid}, name) for pid, name in processes.items()]
    lines = {1: STREAM, 2: OTHER_STREAM, 3: OPERATIONS}
    named += [("thread_name", {"pid": p, "tid": t}, lines[t]) for p in processes for t in lines]
    events += [{"ph": "M", "name": kind, **of, "args": {"name": name}} for kind, of, name in named]
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": [*events, {}]}).encode()))


def test_time_of_a_gpu(tmp_path: Path) -> None:
    """Two steps of 5 ms: half of the collective is hidden, and nothing runs for a while."""
    events = [
        *(operation("gemm.1", at, at + 2000) for at in (1000, 6000)),
        *(operation("all-reduce-start.2", at + 1000, at + 3000, tid=2) for at in (1000, 6000)),
        operation("fusion.3", 4000, 5000),
        operation("command_buffer_260", 10000, 11000, kernel="nvjet_sm90"),
        # None of these count: another line, device, program, and what the host does.
        operation("gemm.1", 0, 9000, tid=3),
        operation("gemm.1", 0, 9000, pid=2),
        operation("copy.4", 500, 600, module="jit_copy"),
        {"ph": "X", "pid": 701, "tid": 1, "ts": 0, "dur": 9000, "name": "$profiler.py"},
    ]
    write(tmp_path, events, PROCESSES)
    assert step_time(tmp_path, 2) == StepTime(
        steps=2,
        milliseconds=5,
        compute=3,
        communication=1,
        idle=1,
        operations=[
            ("gemm.1", 2),
            ("all-reduce-start.2", 2),
            ("fusion.3", 0.5),
            ("nvjet_sm90", 0.5),
        ],
    )


def test_on_a_cpu_an_operation_counts_where_it_is_and_not_in_its_loop(tmp_path: Path) -> None:
    events = [
        operation("while.1", 0, 4000, pid=701),
        operation("dot.2", 500, 2000, pid=701),
        operation("dot.2", 1000, 3000, pid=701, tid=2),
    ]
    write(tmp_path, events, {701: "/host:CPU"})
    found = step_time(tmp_path, 1)
    assert found and (found.compute, found.operations) == (2.5, [("dot.2", 3.5)])


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"{"), gzip.compress(b"{}")], ids=range(4)
)
def test_trace_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    assert step_time(tmp_path, 1) is None
    write(tmp_path, [], {})
    assert step_time(tmp_path, 1) is None
    (file,) = tmp_path.rglob("*.gz")
    file.write_bytes(content)
    assert step_time(tmp_path, 1) is None
