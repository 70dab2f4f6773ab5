"""The example in docs/usage.md: a benchmark is one file and one entry of the configuration."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from plan import ROOT, blocks


def test_own_benchmark(tmp_path: Path) -> None:
    for folder in ("rules", "workflow", "profiles", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    program, config = blocks("Your own benchmark")
    (tmp_path / "workflow/scripts/benchmark_fft.py").write_text(program)
    # Its rounds are starts of JAX, and too few have no interval.
    assert "    rounds: 6\n" in config
    (tmp_path / "mine.yaml").write_text(config.replace("rounds: 6", "rounds: 2\n    repeats: 2"))
    command = [sys.executable, "-m", "snakemake", "--profile=profiles/local"]
    # The package of this copy, as `make setup` in it would install it.
    packages = f"{tmp_path}/workflow:{tmp_path}/workflow/scripts"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": packages}
    subprocess.run([*command, "--configfile=mine.yaml"], cwd=tmp_path, env=environment, check=True)
    (result,) = json.loads((tmp_path / "results/benchmark/1x1.json").read_text())["benchmarks"]
    lengths = yaml.safe_load(config)["benchmark"]["fft"]["lengths"]
    assert [case["case"]["length"] for case in result["cases"]] == lengths
    for measurement in (case["measurement"] for case in result["cases"]):
        assert len(measurement["rounds"]) == 2
        assert measurement["min"] <= measurement["median"] <= measurement["max"]
    assert "GFLOP/s" in (tmp_path / "results/report.html").read_text()
    assert [*(tmp_path / "history").glob("*.parquet")]
