"""Whether a program, as XLA compiles it for GPUs, computes a training step as it should."""

import re
from collections.abc import Iterator

from jaxway_job.hlo import COLLECTIVES, NAME_RE, Instruction, computations, nbytes

COMPUTE = ("fusion", "custom-call", "while", "call", "conditional", "dot")
HOST = ("infeed", "outfeed", "send", "recv")
ATTENTION, ATTENTION_BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


def operand_types(instruction: Instruction, shapes: dict[str, str]) -> set[str]:
    """Types of the first two operands, those of a product."""
    operands = NAME_RE.findall(instruction.rest)[:2]
    return {shapes[x].partition("[")[0] for x in operands}


def waiting(instructions: list[Instruction]) -> Iterator[tuple[int, bool]]:
    """Bytes of each collective, and whether it runs while nothing else does."""
    for number, x in enumerate(instructions):
        kind = x.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        beside = set()
        for other in instructions[number + 1 :] if kind != x.operation else ():
            if other.operation == f"{kind}-done" and re.search(
                rf"%{re.escape(x.name)}\b", other.rest
            ):
                break
            beside.add(other.operation)
        yield nbytes(x.shape), not beside & set(COMPUTE)


def share_waited_for(text: str) -> float:
    """Share of what collectives send that is sent while nothing is computed."""
    found = [each for _, instructions in computations(text) for each in waiting(instructions)]
    return sum(size for size, alone in found if alone) / max(1, sum(size for size, _ in found))


def problems(text: str, attentions: int, attentions_backward: int, donated: int) -> list[str]:
    """What is not as it should be on one GPU.

    ``attentions``: how often cuDNN is to compute attention; ``donated``: arrays of the state.
    """
    found, targets = [], list[str | None]()
    for _, instructions in computations(text):
        shapes = {x.name: x.shape for x in instructions}
        for x in instructions:
            targets.append(x.target)
            product = x.operation == "dot" or "cublas" in (x.target or "")
            if product and (types := operand_types(x, shapes)) != {"bf16"}:
                found.append(f"a product of {' and '.join(sorted(types))}")
            if x.operation == "scatter" and x.shape.startswith("bf16"):
                found.append("sums of embeddings' gradients in bf16")
            if x.operation in HOST or "callback" in (x.target or "") or "S(5)" in x.shape:
                found.append(f"the host takes part: {x.operation} {x.target or ''}")
    expected = {ATTENTION: attentions, ATTENTION_BACKWARD: attentions_backward}
    found += [
        f"{targets.count(target)} calls of {target}, not {count}"
        for target, count in expected.items()
        if targets.count(target) != count
    ]
    aliases = re.search(r"input_output_alias=\{(.*?) \}, entry", text)
    if (count := aliases[1].count("alias)") if aliases else 0) != donated:
        found.append(f"{count} arrays donated, not {donated}")
    return found
