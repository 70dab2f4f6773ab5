"""benchmarks/gpu.py as it would run on a GPU, with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import quick

ROOT = Path(__file__).parents[2]


def test_every_part_finds_what_it_is_for(tmp_path):
    words = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--platform=cpu", "--minutes=60"]
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "JAX"))}
    env = outer | quick.ENVIRONMENT
    done = subprocess.run(
        [*words, f"--out={tmp_path}"], env=env, capture_output=True, text=True, check=False
    )
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log
    table = (tmp_path / "gpu.md").read_text()
    assert done.stdout.endswith(table + "\n") and "not measured on a GPU" in table
    parts = {
        part["name"]: part["result"]
        for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]
    }
    cells = [line[2:-2].split(" | ") for line in table.splitlines()]
    rows = {tuple(row[:2]): row[2:] for row in cells if row[0] in (*parts, "compared")}
    assert rows["smoke test", "9 checks"] == ["all pass", ""]
    assert "equal to the last bit" in next(v for k, v in rows.items() if k[0].startswith("resum"))
    for what in ("result", "gradient of q", "gradient of k", "gradient of v"):
        error = rows["correctness", f"attention, heads of 32: {what}"][0]
        # bfloat16 rounds by up to 2**-8; exactly nothing would be a comparison with itself.
        assert 0.0005 < float(error.split()[1].strip("%")) / 100 < 0.01
    assert {row[0].split()[0] for row in parts["correctness"]["rows"]} == {"attention,", "model,"}
    assert float(rows["compared", "arm: layers in a loop"][0].split()[0]) > 0
    assert rows["training tiny", "tiny: memory"][1].endswith("GiB by the compiler; limit not known")
    assert float(rows["trainer", "tokens_per_second"][0]) > 0
    assert rows["trainer", "a traced step"][1].startswith("compute ")
    for part in ("compute", "memory", "checkpoints"):
        assert any(cell.endswith("/s") for (name, _), (cell, _) in rows.items() if name == part)
    first, *kernels = parts["largest kernels"]["rows"]
    assert any("fusion" in kernel[0] for kernel in kernels) and first[0] == "all kernels"
