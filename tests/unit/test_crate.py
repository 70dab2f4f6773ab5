"""An RO-Crate of made-up results, as the library that others read crates with sees it."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import pytest
from jaxway import cli
from jaxway.slurm.accounting import Cost, JobUsage
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError
from report_results import (
    DATA,
    FLOAT32,
    PROVENANCE,
    SEGMENT,
    SMOKE_TEST,
    Results,
    benchmark,
    measurement,
)
from results import write
from rocrate.rocrate import ROCrate

CONTAINER = cast(ContainerRecord, PROVENANCE.container)
USAGE = JobUsage(
    job="14000001",
    name="train_run base",
    run="1",
    state="COMPLETED",
    submitted="2026-11-22T16:50:00",
    queue_seconds=30,
    seconds=600,
    limit=3600,
    nodes=1,
    sharing=1,
    no_progress=False,
)


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A folder with results of a smoke test, a resumed training and a benchmark."""
    monkeypatch.chdir(tmp_path)
    found = Results(tmp_path / "results")
    write(tmp_path / "results/data/1.json", DATA)
    arguments = {"data_record": "results/data/1.json"}
    second = replace(PROVENANCE, time="2026-11-22T17:00:00Z", job="14000002", arguments=arguments)
    segments = (SEGMENT, replace(SEGMENT, provenance=second, first_step=51))
    found.add_run("lr=0.01", segments=segments)
    found.add(benchmark("compute", [measurement(FLOAT32)]))
    write(tmp_path / "results/cost.json", Cost(128, (USAGE,), None))
    state = tmp_path / "scratch/lr=0.01-0123abcd"
    (state / "checkpoints").mkdir(parents=True)
    (tmp_path / "results/train/lr=0.01/state").symlink_to(state)
    (tmp_path / "results/jax.sif").symlink_to("/nowhere")
    (tmp_path / "mine.yaml").write_text("train: {}\n")
    return tmp_path


def make_crate(*words: str, out: str = "out") -> ROCrate:
    run, args = cli.parse(["crate", out, "--license=CC-BY-4.0", "--configfile=mine.yaml", *words])
    run(args)
    return ROCrate(out)


def names(values: Any) -> set[str]:
    return {value.id for value in (values if isinstance(values, list) else [values])}


def test_names_every_file_with_its_hash(run_folder):
    odd = "results/Übersicht 1 #2?%20.txt"
    (run_folder / odd).write_text("mine")
    crate = make_crate()
    out = run_folder / "out"
    copies = {str(x.relative_to(out)) for x in out.rglob("*") if x.is_file()}
    for name in ("summary.json", "metrics.jsonl"):
        assert f"results/train/lr=0.01/{name}" in copies
    assert {"results/smoke_test.json", "results/benchmark/1x4.json", "results/cost.json"} < copies
    assert {"Snakefile", "rules/train.smk", "workflow/scripts/train.py"} < copies
    assert {"config/mine.yaml", "profiles/jureca/site.yaml", odd} < copies
    assert not any(name.endswith("jax.sif") or "/state" in name for name in copies)
    files = {x["name"]: x for x in crate.get_by_type("File")}
    assert set(files) == copies - {"ro-crate-metadata.json"}
    for name, file in files.items():
        content = (out / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["contentSize"] == str(len(content))


def test_names_image_commit_configuration_jobs_and_times(run_folder):
    crate = make_crate("--author=A. Turing", "--orcid=https://orcid.org/0000-0002-1825-0097")
    whole, smoke_test, first, second, compute = crate.root_dataset["mentions"]
    assert whole["instrument"] is crate.mainEntity
    assert {"config/mine.yaml", "profiles/jureca/site.yaml"} == names(whole["object"])
    assert names(whole["result"]) > names([*second["result"][:2], compute["result"]])
    assert whole["agent"]["name"] == "A. Turing"
    assert "results/train/lr%3D0.01/summary.json" in names(second["result"])
    assert names(first["result"]) <= names(second["object"])  # the checkpoints
    assert "results/data/1.json" in names(second["object"])
    assert [each["identifier"]["value"] for each in (first, second)] == ["14000001", "14000002"]
    assert json.loads(first["description"]) == PROVENANCE.arguments
    assert first["startTime"] == "2026-11-22T16:51:39+00:00"
    end = datetime(2026, 11, 22, 17, 0, 30).astimezone()  # USAGE's; Slurm's times are local
    assert datetime.fromisoformat(first["endTime"]) == end
    assert compute["endTime"] == first["endTime"]
    assert second["endTime"] == "2026-11-22T17:01:00+00:00"  # of its last checkpoint
    program = compute["instrument"]
    assert program["name"] == "benchmark_compute.py"
    assert program["softwareVersion"] == PROVENANCE.commit
    assert program in crate.mainEntity["hasPart"]
    sif = smoke_test["containerImage"]
    assert sif["sha256"] == CONTAINER.sha256
    image = sif["isBasedOn"]
    assert (image["registry"], image["name"]) == ("nvcr.io", "nvidia/jax")
    assert f"sha256:{image['sha256']}" == CONTAINER.digest
    assert crate.mainEntity["programmingLanguage"]["version"].startswith("9.")


def test_packages_on_top_are_named(run_folder):
    on_top = replace(CONTAINER, sha256="0d" * 32, base=CONTAINER, installed=("einops==0.8.0",))
    provenance = replace(PROVENANCE, container=on_top)
    Results(run_folder / "results").add(
        benchmark("compute", [measurement(FLOAT32)], provenance=provenance)
    )
    compute = make_crate().root_dataset["mentions"][-1]
    assert compute["containerImage"]["description"] == "with einops==0.8.0"
    assert compute["containerImage"]["isBasedOn"]["sha256"] == CONTAINER.sha256


def test_refusals_leave_nothing(run_folder):
    make_crate()
    before = sorted(run_folder.rglob("*"))
    with pytest.raises(UserError, match="is there already"):
        make_crate()
    assert sorted(run_folder.rglob("*")) == before
    with pytest.raises(FileNotFoundError):
        make_crate("--configfile=gone.yaml", out="other")
    no_text = run_folder / "results" / os.fsdecode(b"\xff.txt")
    no_text.touch()
    with pytest.raises(UserError, match=r"'results/.udcff.txt' is no name in UTF-8: rename it"):
        make_crate(out="other")
    no_text.unlink()
    for folder in ("train", "benchmark"):
        shutil.rmtree(run_folder / "results" / folder)
    write(run_folder / "results/smoke_test.json", replace(SMOKE_TEST, provenance=None))
    with pytest.raises(UserError, match="no result here says"):
        make_crate(out="other")
    (run_folder / "results/smoke_test.json").unlink()
    with pytest.raises(UserError, match="is missing: run snakemake"):
        make_crate(out="other")
    assert not (run_folder / "other").exists()
