"""Which sizes of a training fit together. The configuration asks before, the program once more."""

from collections.abc import Mapping
from typing import Any


def violations(options: Mapping[str, Any], devices: int) -> list[tuple[str, str]]:
    """Each option that breaks a rule, and what it must be. ``options``: resolved ones."""
    fsdp, tensor = options["fsdp"], options["tensor"]
    width, heads, kv_heads = options["width"], options["heads"], options["kv_heads"]
    steps, warmup = options["steps"], options["warmup_steps"]
    end = options["schedule_steps"] or steps
    peak, lowest = options["learning_rate"], options["min_learning_rate"]
    stable = end - warmup  # steps that warm-up leaves
    parts = devices // tensor * options["gradient_accumulation_steps"]
    profile, every = options["profile"], options["validate_every"]
    last = profile["first"] + profile["steps"] - 1 if profile else 0
    # Its last step's validation comes after the trace.
    traced = range(profile["first"], last) if profile else ()
    rules = (
        ("fsdp", devices % (fsdp * tensor) == 0, f"such that fsdp x tensor divides {devices} GPUs"),
        (
            "global_batch",
            options["global_batch"] % max(1, parts) == 0,
            f"a multiple of {parts}, GPUs that share it x gradient_accumulation_steps",
        ),
        ("width", width % fsdp == 0, f"a multiple of fsdp {fsdp}"),
        ("heads", heads % tensor == 0, f"a multiple of tensor {tensor}"),
        ("heads", heads % kv_heads == 0, f"a multiple of kv_heads {kv_heads}"),
        ("kv_heads", kv_heads % tensor == 0, f"a multiple of tensor {tensor}"),
        ("mlp_width", options["mlp_width"] % tensor == 0, f"a multiple of tensor {tensor}"),
        # The vocabulary is padded to a multiple of 128.
        ("tensor", 128 % tensor == 0, "a power of 2, at most 128"),
        ("width", width % (2 * heads) == 0, "an even multiple of heads"),
        ("warmup_steps", stable > 0, f"fewer than the {end} steps of the schedule"),
        (
            "decay_steps",
            (options["decay_steps"] or 0) <= stable,
            f"at most the {stable} steps after warm-up",
        ),
        ("min_learning_rate", lowest <= peak, f"at most learning_rate {peak}"),
        (
            "steps",
            steps <= end or lowest,
            f"at most schedule_steps {end}, where the learning rate is 0",
        ),
        ("profile", last <= steps, f"of steps up to {steps}"),
        ("restart", options["from"] or not options["restart"], "false without `from`"),
        (
            "profile",
            all(step % every for step in traced) if every else True,
            f"of steps between validations, which are every {every}",
        ),
    )
    return [(option, expected) for option, kept, expected in rules if not kept]
