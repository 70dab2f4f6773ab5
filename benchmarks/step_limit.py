"""What a training step takes at least on one GPU, and its memory, without the GPU.

From the program that XLA compiles for it, with the best rates that have been seen on such a GPU.
Run after `make setup`: .venv/bin/python benchmarks/step_limit.py GPU PRESET SEQUENCES [JSON]
JSON: further options of train.py. XLA finds no faster kernels by trying, as it would on a GPU.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
folders = ("tests/helpers", "workflow", "workflow/scripts")
sys.path[:0] = [*(str(ROOT / folder) for folder in folders), str(Path(sys.prefix, "cuda"))]
import hlo  # noqa: E402

os.environ.update(hlo.ENVIRONMENT)
import compile_for_gpus  # noqa: E402
from jaxway_job import flops, measure, model  # noqa: E402
from jaxway_shared import presets  # noqa: E402

RATES = {"A100": (270e12, 1300e9), "H100": (790e12, 3000e9)}  # FLOP/s, byte/s


def main() -> None:
    kind, preset, sequences = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = json.loads(sys.argv[4]) if sys.argv[4:] else {}
    gpu = next(name for name in compile_for_gpus.GPUS if kind in name)
    program, _ = compile_for_gpus.compile_step(
        gpu=gpu, preset=preset, global_batch=sequences, **options
    )
    seconds, products = hlo.lower_limit(program.as_text(), *RATES[kind])
    sizes = presets.PRESETS[preset]
    config = model.Config(sizes.layers, sizes.width, sizes.heads, 50304)
    work = flops.per_token(config, sizes.context)
    tokens = sequences * sizes.context / seconds
    print(
        f"{gpu}, {preset}, {sequences} x {sizes.context}: at least {1e3 * seconds:.1f} ms, of it "
        f"{1e3 * products:.1f} ms matrix products; at most {tokens:.0f} tokens/s, MFU "
        f"{tokens * work / (flops.peak(gpu) or 1):.0%}; "
        f"{measure.memory_use(program).compiled / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
