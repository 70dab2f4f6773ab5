"""Memory of many steps by XLA's compiler, which a unit test compares the closed formula with.

Run after `make setup`: .venv/bin/python benchmarks/step_memory.py
It adds what is missing to tests/unit/steps/compiled.jsonl, which is to be deleted first when
the model or JAX has changed: all takes about 20 minutes on 2 cores.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("workflow", "workflow/scripts")]
from jaxway.steps.compiled import compile_steps  # noqa: E402
from jaxway.steps.step import step_of  # noqa: E402

TABLE = ROOT / "tests/unit/steps/compiled.jsonl"
A100, H100, GH200 = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3", "NVIDIA GH200 120GB"
# Preset, global batch, GPUs, other options.
CASES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("tiny", 256, 1, {}),
    ("tiny", 4096, 4, {}),
    *(
        ("124M", batch, 1, {"remat": remat})
        for batch in (8, 32)
        for remat in ("none", "dots", "full")
    ),
    ("124M", 64, 1, {}),
    ("124M", 128, 1, {"remat": "full"}),
    ("124M", 32, 4, {"fsdp": 4}),
    ("124M", 64, 4, {"fsdp": 2}),
    ("124M", 128, 4, {"fsdp": 4}),
    ("124M", 128, 4, {"fsdp": 4, "remat": "full"}),
    ("124M", 128, 4, {"remat": "dots"}),
    ("124M", 64, 8, {"fsdp": 8, "remat": "dots"}),
    ("124M", 128, 8, {"fsdp": 2, "tensor": 2, "remat": "dots"}),
    ("124M", 32, 4, {"tensor": 4}),
    ("124M", 32, 4, {"fsdp": 2, "tensor": 2, "kv_heads": 4}),
    ("124M", 64, 4, {"mlp": "gated", "remat": "full"}),
    ("124M", 64, 8, {"fsdp": 4, "remat": "full"}),
    ("124M", 64, 1, {"remat": "dots", "gpu": H100}),
    ("124M", 64, 4, {"fsdp": 4, "gpu": H100}),
    ("124M", 128, 1, {"gradient_accumulation_steps": 8}),
    ("124M", 16, 1, {"gradient_accumulation_steps": 2, "remat": "full"}),
    ("124M", 32, 1, {"unroll": False}),
    ("124M", 32, 1, {"tied_embeddings": False}),
    ("124M", 32, 1, {"mlp": "gated", "kv_heads": 4}),
    ("124M", 32, 1, {"mlp": "gated", "remat": "dots"}),
    ("124M", 8, 1, {"document_attention": True}),
    ("124M", 8, 1, {"dtype": "float32"}),
    ("350M", 4, 1, {}),
    ("350M", 8, 1, {"tied_embeddings": False}),
    ("350M", 16, 1, {}),
    ("350M", 16, 1, {"remat": "dots"}),
    ("350M", 32, 1, {"remat": "full"}),
    ("350M", 64, 4, {"fsdp": 4}),
    ("350M", 64, 4, {"fsdp": 2, "remat": "dots"}),
    ("350M", 64, 4, {"remat": "full"}),
    ("350M", 16, 1, {"unroll": False, "remat": "dots"}),
    # With fewer layers, which take less long to compile, and with all.
    ("774M", 8, 1, {"layers": 8}),
    ("774M", 16, 4, {"layers": 8, "remat": "dots"}),
    ("1.3B", 4, 1, {}),
    ("1.3B", 16, 4, {"layers": 6, "fsdp": 4, "remat": "dots"}),
    ("2.7B", 16, 4, {"layers": 6, "fsdp": 4, "remat": "full"}),
    ("6.7B", 16, 8, {"layers": 5, "fsdp": 4, "tensor": 2, "remat": "dots"}),
    ("6.7B", 8, 4, {"layers": 5, "fsdp": 4, "remat": "full", "gpu": A100}),
    ("774M", 8, 1, {"remat": "dots"}),
    ("1.3B", 16, 4, {"fsdp": 4}),
    ("1.3B", 16, 4, {"fsdp": 4, "remat": "dots"}),
    ("2.7B", 16, 4, {"fsdp": 4, "remat": "dots"}),
    ("6.7B", 8, 4, {"fsdp": 4, "remat": "full"}),
]
WORKERS = 2


def write(cases: list[dict[str, Any]]) -> None:
    """Compile steps, and add a line for each to the table."""
    steps = [step_of(**case) for case in cases]
    for case, compiled in zip(cases, compile_steps(steps), strict=True):
        line = json.dumps({**case, "memory": compiled.memory})
        with TABLE.open("a") as file:
            file.write(f"{line}\n")
        print(
            line, f"{compiled.memory / 2**30:.2f} GiB, {1e3 * compiled.seconds:.0f} ms", flush=True
        )


def case_of(preset: str, batch: int, gpus: int, options: dict[str, Any]) -> dict[str, Any]:
    # Where a GPU has little more than a step needs, XLA spares memory: little of that here.
    usual = A100 if preset in ("tiny", "124M", "350M") else GH200
    return {
        "gpu": options.pop("gpu", usual),
        "nodes": -(-gpus // 4),
        "gpus_per_node": min(gpus, 4),
        "vocabulary": 256 if preset == "tiny" else 50257,
        "options": {"preset": preset, "global_batch": batch, **options},
    }


def main() -> None:
    cases = [case_of(*case) for case in CASES]
    if TABLE.exists():
        known = [json.loads(line) for line in TABLE.read_text().splitlines()]
        cases = [case for case in cases if all(line != {**line, **case} for line in known)]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(write, [cases[worker::WORKERS] for worker in range(WORKERS)]))
    lines = TABLE.read_text().splitlines()
    TABLE.write_text("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
