"""The training step as XLA compiles it for GPUs that are not there: is it what it should be?

What is looked for depends on neither the number of layers nor of heads, so both are small.
"""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import compile_for_gpus
import hlo_problems
import pytest
from examples import make_site
from jaxway.config.gpus import known_gpus
from jaxway.config.load import load
from jaxway.preflight import plan, plan_memory
from jaxway.preflight.memory import check_memory
from jaxway_job import hlo
from jaxway_shared.environment import for_compiling
from jaxway_shared.presets import PRESETS

CUDA = Path(sys.prefix, "cuda")  # where `make setup` puts the plugin
A100, H100, GH200 = known_gpus()
OPTIONS = {"kv_heads": 2, "mlp": "gated"}
# A GPU chooses between cuBLAS and Triton for each product, and XLA without one takes Triton. Most
# cases have cuBLAS, which takes less long to compile.
CUBLAS, TRITON = {"xla_gpu_enable_triton_gemm": False}, {"xla_gpu_enable_triton_gemm": True}
FOUR, EIGHT = {"gpus": 4}, {"hosts": 2, "gpus": 4}


def small(preset, layers=2, gpu=A100, **options):
    """A case with a preset's context, size of heads, embeddings and n-grams."""
    width = 4 * PRESETS[preset].width // PRESETS[preset].heads
    shape = {"preset": preset, "layers": layers, "width": width, "heads": 4, "global_batch": 16}
    return {"gpu": gpu, **shape, "xla": CUBLAS, **options}


# What differs between presets in more than numbers, with each `remat` and each way to shard; not
# with all combinations of these.
CASES = {
    "tiny": small("tiny", layers=1, vocabulary=256),
    "1.3B, full": small("1.3B", layers=1, remat="full", gradient_accumulation_steps=2),
    "GH200": small("124M", layers=1, gpu=GH200, xla=TRITON),
    "4, 124M": small("124M", **FOUR),
    "4, tiny, dots": small("tiny", remat="dots", vocabulary=256, **FOUR),
    "4, 1.3B, fsdp": small("1.3B", fsdp=4, xla=TRITON, **FOUR),
    "4, 350M, fsdp, dots": small("350M", fsdp=4, remat="dots", **OPTIONS, **FOUR),
    "4, 2.7B, tensor, dots": small("2.7B", tensor=4, remat="dots", **FOUR),
    "8, 774M, tensor, full": small("774M", tensor=2, remat="full", **EIGHT),
    "8, tiny, fsdp, tensor, full": small("tiny", fsdp=2, tensor=4, remat="full", **EIGHT),
    "8 H100, 6.7B, fsdp, full": small("6.7B", gpu=H100, fsdp=4, remat="full", **EIGHT),
}
MUTANT = small("1.3B", layers=1, fsdp=4, mutated=True, **FOUR)
# In so small a model the gradients of all layers are sent at once, after the last of them; and with
# tensor parallelism a product waits for the sum of the one before.
MOST_WAITED_FOR = 0.6


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Function that returns a program's text and the number of arrays in its state."""
    folder = tmp_path_factory.mktemp("compiled")
    packages = os.pathsep.join([str(CUDA), *sys.path])
    environment = for_compiling(os.environ, packages)
    words = [
        sys.executable,
        compile_for_gpus.__file__,
        json.dumps(CASES | {"mutant": MUTANT}),
        str(folder),
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    donated = json.loads((folder / "donated.json").read_text())
    return lambda name: ((folder / f"{name}.hlo").read_text(), donated[name])


def problems(compiled, name, case):
    text, donated = compiled(name)
    forward = case["layers"] * (2 if "remat" in case else 1)
    return hlo_problems.problems(text, forward, case["layers"], donated)


@pytest.mark.parametrize("name", CASES)
def test_step_is_as_it_should_be(compiled, name):
    assert problems(compiled, name, CASES[name]) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "gpus" in case])
def test_collectives_run_beside_computation(compiled, name):
    text, _ = compiled(name)
    assert re.search(r"(all-reduce|reduce-scatter)-start\(", text)
    assert hlo_problems.share_waited_for(text) < MOST_WAITED_FOR


def test_gradients_of_each_layer_are_sent_by_themselves(compiled):
    """So what they are computed from is not held until those of all layers are sent."""
    case = CASES["4, 124M"]
    found = [x for _, body in hlo.computations(compiled("4, 124M")[0]) for x in body]
    sent = [hlo.nbytes(x.shape) for x in found if x.operation == "all-reduce-start"]
    assert sent.count(2 * 12 * case["width"] ** 2) == case["layers"]


@pytest.mark.parametrize(
    "expected",
    [
        "0 calls of __cudnn$fmhaSoftmax, not 1",
        "a product of f32",
        "sums of embeddings' gradients in bf16",
        "0 arrays donated",
        "the host takes part",
    ],
)
def test_mutation_is_found(compiled, expected):
    found = problems(compiled, "mutant", MUTANT)
    assert any(problem.startswith(expected) for problem in found)


def test_blocking_collectives_are_found(compiled):
    assert hlo_problems.share_waited_for(compiled("mutant")[0]) > MOST_WAITED_FOR


def test_preflight_knows_compiled_steps(tmp_path, monkeypatch, capsys):
    site = make_site(gpu=A100, scratch=str(tmp_path))
    small = {"data": ["python"], "layers": 1, "width": 64, "heads": 1, "context": 64, "ngram": 1}
    settings = {"train": {"a": small}}
    monkeypatch.setattr(plan_memory, "read", lambda args: ({}, settings, site))
    plan_memory.run(argparse.Namespace())
    printed = capsys.readouterr().out.strip()
    assert re.match(
        r"PASS memory      train.a: 0.0 GiB of .*at least [\d.]+ ms a step, so at most", printed
    )
    config = load(settings, site)
    (known,) = check_memory(config, site, plan.all_jobs(config))
    assert known.message in printed


def test_lower_limit_adds_up_kernels(compiled):
    text, _ = compiled("GH200")
    tokens, width, vocabulary = 16 * 1024, 256, 50304
    of_layers = 3 * 2 * tokens * 12 * width**2
    of_head = 3 * 2 * tokens * width * vocabulary
    _, products = hlo.lower_limit(text, 1.0, 1e300)  # by operations alone
    assert products == of_layers + of_head
    seconds, _ = hlo.lower_limit(text, 1e300, 1.0)  # by bytes alone
    parameters = 12 * width**2 + width * vocabulary
    # The optimizer reads four arrays of float32 and writes three; logits are written and read.
    least = 7 * 4 * parameters + 2 * 2 * tokens * vocabulary
    assert least < seconds < 10 * least


def test_each_preset_is_compiled_with_each_setting():
    """Presets are of three kinds, by their n-grams and the size of their heads."""
    kind = {name: (x.ngram, x.width // x.heads) for name, x in PRESETS.items()}
    found = set()
    for case in CASES.values():
        shares = {name: case.get(name, 1) for name in ("fsdp", "tensor")}
        devices = case.get("hosts", 1) * case.get("gpus", 1)
        shares["data"] = devices // math.prod(shares.values())
        ways = [name for name, share in shares.items() if share > 1] or ["one GPU"]
        found |= {(kind[case["preset"]], x) for x in (case.get("remat", "none"), *ways)}
    settings = ("none", "dots", "full", "one GPU", "data", "fsdp", "tensor")
    assert found == {*itertools.product(kind.values(), settings)}
    assert {case["preset"] for case in CASES.values()} == {*PRESETS}
