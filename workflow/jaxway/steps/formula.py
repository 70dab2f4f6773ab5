"""Memory of a training's step on one GPU by a closed formula, where compiling it takes too long.

tests/unit/steps/test_formula.py compares it with XLA's compiler. In bytes of one GPU.
"""

from dataclasses import asdict

from jaxway_shared import presets

from jaxway.steps.step import Step

GATHERED = 0.6  # 0.2 to 1 in those settings
ERROR = 0.1  # of the formula, at most, in the settings of that test


def estimate(step: Step) -> float:
    """The state, parameters as activations are, and the most that is held at once beside them."""
    state = presets.BYTES_OF_A_PARAMETER * parameters(step) + weights(step) + accumulated(step)
    held = kept(step) * step.shape.layers + head(step)
    return state + held + max(loss(step), backward(step))


def parameters(step: Step) -> float:
    """Parameters that one GPU has."""
    counts = presets.parameter_counts(asdict(step.shape), step.vocabulary)
    return sum(counts) / (step.shape.fsdp * step.shape.tensor)


def size(step: Step) -> int:
    """Of one number of an activation."""
    return 4 if step.shape.dtype == "float32" else 2


def batch(step: Step) -> float:
    """Sequences that all GPUs compute at once."""
    return step.shape.global_batch / step.shape.gradient_accumulation_steps


def activation(step: Step, width: float) -> float:
    """One that has so many numbers at each position."""
    positions = batch(step) * step.shape.context * step.shape.tensor / step.devices
    return size(step) * positions * width


def kept(step: Step) -> float:
    """What a layer leaves for the backward pass."""
    return layer(step, step.shape.remat)


def layer(step: Step, remat: str) -> float:
    """The same, by what is computed again. Names as in jaxway_job/model.py: D is not sharded over
    ``tensor``, of heads' queries H, heads' keys G and the MLP's F each GPU has a part."""
    shape = step.shape
    D, H, F = shape.width, shape.width / shape.tensor, shape.mlp_width / shape.tensor
    G, gates = H * shape.kv_heads / shape.heads, 2 if shape.mlp == "gated" else 1
    # Of a sum, its norm, and both again for the MLP; queries and keys before and behind norm and
    # rotation, values, and what is attended; what the MLP's activation gets, and its result.
    everything = 4 * D + 3 * H + 3 * G + (gates + 1) * F
    products = 2 * D + H + 2 * G + gates * F  # and the sum
    if not shape.unroll:  # a loop stacks some of it in float32
        everything, products = everything + 4 * D + 2 * H + 2 * G, products + D
    if remat == "none":
        return activation(step, everything) + scores(step)
    return activation(step, products if remat == "dots" else D)


def scores(step: Step) -> float:
    """Of a layer's attention where cuDNN does not compute it: in float32 and as activations are, of
    each position five eighths of all (sdpa() in jaxway_job/model.py)."""
    shape = step.shape
    width = shape.width // shape.heads
    if size(step) == 2 and not shape.document_attention and width % 8 == 0 and width <= 128:
        return 0
    count = shape.heads / shape.tensor * shape.context * 5 / 8
    return activation(step, count) * (4 + size(step)) / size(step)


def weights(step: Step) -> float:
    """Parameters as activations are; of those that ``fsdp`` gathers, XLA keeps about so many."""
    copies = GATHERED * (step.shape.fsdp - 1) + (size(step) < 4)
    return size(step) * parameters(step) * copies


def loss(step: Step) -> float:
    """A chunk's logits; the last sum, its norm, and their gradients."""
    return logits(step) + activation(step, 4 * step.shape.width)


def head(step: Step) -> float:
    """Gradient of the head, in float32."""
    return 4 * presets.padded(step.vocabulary) * step.shape.width / step.shape.tensor


def logits(step: Step) -> float:
    """A chunk's (jaxway_job/cross_entropy.py)."""
    shape, rows = step.shape, presets.padded(step.vocabulary)
    chunk = next(
        length
        for length in range(shape.context, 0, -1)
        if shape.context % length == 0
        and (length == 1 or batch(step) * length * rows <= presets.MAX_LOGITS)
    )
    return size(step) * batch(step) * chunk * rows / step.devices


def backward(step: Step) -> float:
    """What a layer computes again, and gradients of its sum and its scores."""
    again = layer(step, "none") - kept(step)
    return again + activation(step, step.shape.width) + scores(step)


def accumulated(step: Step) -> float:
    """Gradients of the parts of a batch: their sum, and one part's."""
    return 8 * parameters(step) if step.shape.gradient_accumulation_steps > 1 else 0
