"""Where a step's time went, by the trace that JAX's profiler wrote of some steps.

Perfetto's format: times are microseconds. An event of XLA names its operation, and the program that
this is of. On a GPU it lies on a stream of the device, on the CPU on a thread. Of the operations of
a command buffer (CUDA graph) all that is known is the kernel's name.
"""

import gzip
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxway_shared.training import TRACE

OPERATIONS = 10  # that are shown
COMMUNICATION_RE = re.compile(
    r"all-(reduce|gather|to-all)|reduce-scatter|collective|ragged-all|(send|recv)\b|nccl"
)


class Event(NamedTuple):
    """An operation on a stream or thread."""

    begin: float
    end: float
    operation: str

    @property
    def communicates(self) -> bool:
        return COMMUNICATION_RE.search(self.operation) is not None


@dataclass(frozen=True)
class StepTime:
    """A mean step of those that were traced: of the first device, or of all on the CPU.

    ``compute``: something else than communication is running; with ``communication`` alone and
    ``idle`` these are all of ``milliseconds``. ``operations`` have the sums of their times, several
    of which may run at once.
    """

    steps: int
    milliseconds: float
    compute: float
    communication: float
    idle: float
    operations: list[tuple[str, float]]


def step_time(state: Path, steps: int) -> StepTime | None:
    """What the newest trace in a training's state says of so many steps; None, there is none."""
    files = sorted(state.glob(f"{TRACE}/plugins/profile/*/*.trace.json.gz"))
    try:
        with gzip.open(files[-1]) as file:
            events = operations_of(json.load(file)["traceEvents"])
    except (IndexError, OSError, EOFError, ValueError, KeyError):
        return None
    if not events:
        return None
    begin, end = min(event.begin for event in events), max(event.end for event in events)
    busy = covered(events)
    compute = covered(event for event in events if not event.communicates)
    sums = defaultdict[str, float](float)
    for event in events:
        sums[event.operation] += event.end - event.begin
    per_step = 1000 * steps  # microseconds of all steps in a millisecond of one
    largest = sorted(sums.items(), key=lambda item: -item[1])[:OPERATIONS]
    return StepTime(
        steps=steps,
        milliseconds=(end - begin) / per_step,
        compute=compute / per_step,
        communication=(busy - compute) / per_step,
        idle=(end - begin - busy) / per_step,
        operations=[(name, time / per_step) for name, time in largest],
    )


def operations_of(events: list[dict[str, Any]]) -> list[Event]:
    """Those of the program that takes most of the time, on the first device."""
    processes, threads = dict[int, str](), dict[tuple[int, int], str]()
    for event in events:
        if event.get("name") == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event.get("name") == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    devices = sorted(pid for pid, name in processes.items() if name.startswith("/device:"))
    lines = defaultdict[str, dict[tuple[int, int], list[Event]]](lambda: defaultdict(list))
    totals = defaultdict[str, float](float)
    for event in events:
        arguments = event.get("args", {})
        if event.get("ph") != "X" or "hlo_op" not in arguments:
            continue
        place = event["pid"], event["tid"]
        # Other lines of a device repeat what is on its streams.
        if devices and (place[0] != devices[0] or not threads.get(place, "").startswith("Stream")):
            continue
        begin, program = event["ts"], arguments.get("hlo_module", "")
        in_buffer = arguments["hlo_op"].startswith("command_buffer")
        operation = event["name"] if in_buffer else arguments["hlo_op"]
        lines[program][place].append(Event(begin, begin + event["dur"], operation))
        totals[program] += event["dur"]
    if not totals:
        return []
    program = max(totals, key=lambda name: totals[name])
    return [event for line in lines[program].values() for event in innermost(line)]


def innermost(events: list[Event]) -> list[Event]:
    """Those of a line in which no other one lies, as an operation lies in its loop."""
    ordered = sorted(events, key=lambda event: (event.begin, -event.end))
    return [
        event
        for event, following in itertools.zip_longest(ordered, ordered[1:])
        if following is None or following.end > event.end or following.begin >= event.end
    ]


def covered(events: Iterable[Event]) -> float:
    """The time in which at least one of several events is running."""
    total, end = 0.0, float("-inf")
    for event in sorted(events):
        total += max(0.0, event.end - max(end, event.begin))
        end = max(end, event.end)
    return total
