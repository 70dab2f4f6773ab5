"""The text of an optimised program, HLO, and what a GPU needs at least to run it."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u16": 2, "u8": 1, "pred": 1}
ARRAY_RE = re.compile(r"\b(" + "|".join(SIZES) + r")\[([\d,]*)\]")
INSTRUCTION_RE = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
NAME_RE = re.compile(r"%([\w.\-]+)")
COMPUTATION_RE = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
FREE |= {f"{kind}-done" for kind in COLLECTIVES}


class Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str  # operands, and attributes

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]+)"', self.rest)
        return found and found[1]


def computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Name of each computation, and its instructions in the order in which they run."""
    name, current = "", list[Instruction]()
    for line in text.splitlines():
        if head := COMPUTATION_RE.match(line):
            name, current = head[1], []
        elif line.startswith("}"):
            yield name, current
        elif found := INSTRUCTION_RE.match(line):
            current.append(Instruction(*found.groups()))


def nbytes(shape: str) -> int:
    """Bytes of all arrays that a shape names."""
    arrays = ARRAY_RE.findall(shape)
    return sum(
        SIZES[kind] * math.prod(map(int, filter(None, axes.split(",")))) for kind, axes in arrays
    )


def lower_limit(text: str, flops: float, bandwidth: float) -> tuple[float, float]:
    """Seconds that a program takes at least, and those of matrix products among them.

    For each kernel the larger of operations / ``flops`` and bytes / ``bandwidth`` (per second),
    times the trips of the loops around it; what it sends, and the operations of what is no matrix
    product, count nothing.
    """
    named = {name: body for name, body in computations(text)}
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    assert entry
    found = list(kernels(named, entry[1]))
    times = [(n * max(work / flops, size / bandwidth), work) for n, work, size in found]
    return sum(time for time, _ in times), sum(time for time, work in times if work)


def kernels(
    named: dict[str, list[Instruction]], name: str, times: int = 1
) -> Iterator[tuple[int, int, int]]:
    """How often each kernel runs, its operations, and its bytes."""
    shapes = {x.name: x.shape for x in named[name]}
    for x in named[name]:
        if x.operation == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', x.rest)
            body = re.search(r"body=%?([\w.\-]+)", x.rest)
            assert body
            yield from kernels(named, body[1], times * (int(trips[1]) if trips else 1))
        elif x.operation not in FREE:
            called = re.search(r"calls=%?([\w.\-]+)", x.rest)
            if called and called[1] in named:
                body_ = named[called[1]]
                yield times, operations(body_), moved(body_, x.shape)
            else:
                operands = x.rest.split("), ")[0]
                read = sum(nbytes(shapes.get(y, "")) for y in NAME_RE.findall(operands))
                yield times, operations([x], shapes), nbytes(x.shape) + read


def moved(body: list[Instruction], output: str) -> int:
    """Bytes that a fusion reads and writes: of an operand that is sliced only, the slices; of one
    that is updated in place, the update."""
    shapes = {x.name: x.shape for x in body}
    read, written = 0, nbytes(output)
    for parameter in (x for x in body if x.operation == "parameter"):
        same = {parameter.name}
        for x in body:
            if x.operation == "bitcast" and same & {*NAME_RE.findall(x.rest)}:
                same.add(x.name)
        users = [x for x in body if x.operation != "bitcast" and same & {*NAME_RE.findall(x.rest)}]
        first = [NAME_RE.findall(x.rest)[0] in same for x in users]
        if users and all(x.operation == "dynamic-slice" for x in users):
            read += sum(nbytes(x.shape) for x in users)
        elif users and all(first) and all(x.operation == "dynamic-update-slice" for x in users):
            updates = [shapes[NAME_RE.findall(x.rest)[1]] for x in users]
            written += sum(map(nbytes, updates)) - len(users) * nbytes(parameter.shape)
        else:
            read += nbytes(parameter.shape)
    return read + max(written, 0)


def operations(body: list[Instruction], shapes: dict[str, str] | None = None) -> int:
    """Operations of the matrix products among instructions."""
    shapes = shapes or {x.name: x.shape for x in body}
    total = 0
    for x in (x for x in body if x.operation == "dot"):
        left = axes(shapes[NAME_RE.findall(x.rest)[0]])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
        assert contracted
        total += (
            2 * math.prod(axes(x.shape)) * math.prod(left[int(i)] for i in contracted[1].split(","))
        )
    return total


def axes(shape: str) -> list[int]:
    """Sizes of an array's axes."""
    found = ARRAY_RE.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []
