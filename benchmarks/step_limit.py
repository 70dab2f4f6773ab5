"""What a training step takes at least on one GPU, and its memory, without the GPU.

From the program that XLA compiles for it, with the best rates that have been seen on such a GPU.
Run after `make setup`: .venv/bin/python benchmarks/step_limit.py GPU PRESET SEQUENCES [JSON]
JSON: further options of train.py. XLA finds no faster kernels by trying, as it would on a GPU.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("workflow", "workflow/scripts")]
from jaxway.config.gpus import known_gpus  # noqa: E402
from jaxway.steps.compiled import compile_steps  # noqa: E402
from jaxway.steps.step import step_of  # noqa: E402

VOCABULARY = 50304


def main() -> None:
    kind, preset, sequences = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = json.loads(sys.argv[4]) if sys.argv[4:] else {}
    gpu = next(name for name in known_gpus() if kind in name)
    options |= {"preset": preset, "global_batch": sequences}
    step = step_of(options, VOCABULARY, gpu, nodes=1, gpus_per_node=1)
    (found,) = compile_steps([step])
    print(
        f"{gpu}, {preset}, {sequences} x {step.shape.context}: at least {1e3 * found.seconds:.1f} "
        f"ms, of it {1e3 * found.seconds_of_products:.1f} ms matrix products; at most "
        f"{found.tokens_per_second:.0f} tokens/s, MFU {found.mfu or 0:.0%}; "
        f"{found.memory / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
