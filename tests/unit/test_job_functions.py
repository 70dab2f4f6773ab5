"""What Snakemake gets to know of a job by its wildcards."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examples import make_config, make_site
from jaxway.config.schema import WORKFLOW
from jaxway.job_functions import JobFunctions
from jaxway.launch import Launch

TRAIN = {
    "own": {"global_batch": 8},
    "large": {"nodes": 2, "processes_per_node": 4, "global_batch": 8, "max_jobs": 3},
    "mine": {"program": "command", "command": "x", "walltime": 7},
}


def make_functions(contained: bool = True, **settings: Any) -> JobFunctions:
    site = make_site(sif="/c/jax.sif", cores_per_node=128)
    return JobFunctions(Launch(WORKFLOW.parent, make_config(site, **settings), site, contained))


def wildcards(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name)


@pytest.mark.parametrize(("name", "walltime"), [("own", 30), ("mine", 7)])
def test_what_differs_between_jobs_is_a_function_of_the_name(name: str, walltime: int) -> None:
    functions = make_functions(train=TRAIN)
    resources = functions.resources_of(functions.launch.config.train)
    assert callable(resources["runtime"])
    assert resources["runtime"](wildcards(name)) == walltime


def test_what_all_jobs_share_is_no_function() -> None:
    functions = make_functions(train={"a": {"steps": [100, 200]}})
    jobs = functions.launch.config.train
    assert functions.resources_of(jobs)["runtime"] == 30
    assert functions.threads_of(jobs) == 128
    assert functions.max_jobs() == 10


def test_without_any_job_there_are_values_too() -> None:
    functions = make_functions()
    assert functions.resources_of({})["nodes"] == 1
    assert functions.threads_of({}) == 1


def test_a_program_that_brings_its_data_needs_none_prepared() -> None:
    functions = make_functions(train=TRAIN)
    ready = functions.ready()
    assert callable(ready)
    assert ready(wildcards("mine")) == "results/data/.none.ready"
    (data,) = functions.launch.config.data.values()
    assert ready(wildcards("own")) == f"results/data/.{data.id}.ready"
    assert f"--data-record={data.record}" in functions.train_command(wildcards("own"))
    assert "--data-record" not in functions.train_command(wildcards("mine"))
    command = functions.train_command(wildcards("mine"))
    assert "--state=results/train/mine/state --states=scratch/train/mine" in command


def test_a_training_waits_for_the_one_at_whose_checkpoint_it_begins() -> None:
    fork = {"global_batch": 8, "from": "own@5", "profile": {"first": 2, "steps": 1}}
    elsewhere = {"global_batch": 8, "from": "/s/train/own-01234567"}
    functions = make_functions(train=TRAIN | {"fork": fork, "elsewhere": elsewhere})
    origins = functions.origins()
    assert callable(origins)
    assert origins(wildcards("fork")) == "results/train/own/summary.json"
    assert origins(wildcards("own")) == origins(wildcards("elsewhere")) == []
    command = functions.train_command(wildcards("fork"))
    assert "--from=own@5 " in command
    assert """ '--profile={"first": 2, "steps": 1}' """ in command


def test_only_results_that_are_gone_are_named(tmp_path, monkeypatch) -> None:
    """Summaries by whether the report is there without them, metrics by their summaries."""
    monkeypatch.chdir(tmp_path)
    functions = make_functions(train={"a": {"steps": [100, 200]}})
    first, second = (Path("results/train", f"a-steps={steps}") for steps in (100, 200))
    assert functions.deleted_results(wildcards("")) == []
    first.mkdir(parents=True)
    (first / "summary.json").touch()
    assert functions.deleted_results(wildcards("")) == [f"{first}/metrics.jsonl"]
    (first / "metrics.jsonl").touch()
    assert functions.deleted_results(wildcards("")) == []
    Path("results/report.html").touch()
    gone = [f"{second}/summary.json"]
    assert functions.deleted_results(wildcards("")) == gone
    assert functions.summaries(wildcards("")) == [f"{first}/summary.json", *gone]


def test_a_job_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^no job is named owm; did you mean 'own'\? \[JW006\]$"):
        make_functions(train=TRAIN).training(wildcards("owm"))
    with pytest.raises(SystemExit, match=r"^no job is named own; known: none \[JW006\]$"):
        make_functions().training(wildcards("own"))


def test_benchmarks_of_an_allocation_depend_on_their_programs_and_containers() -> None:
    benchmark = {
        "old": {"program": "memory", "sif": "/c/old.sif"},
        "memory": {},
        "two": {"program": "memory", "nodes": 2},
    }
    functions = make_functions(benchmark=benchmark)
    one = wildcards("1x4")
    assert [path.name for path in functions.benchmark_programs(one)] == ["benchmark_memory.py"]
    assert functions.benchmark_digests(one) == ["/c/old.sif.digest"]
    assert functions.benchmark_digests(wildcards("2x4")) == []
    assert [each["name"] for each in functions.plan(one)["benchmarks"]] == ["old", "memory"]


def test_program_that_the_configured_python_path_leads_to(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    train = {"a": {"program": "command", "command": "python3 -m prog"}}
    functions = make_functions(train=train, environment={"PYTHONPATH": "lib"})
    before = functions.programs()
    (tmp_path / "lib/prog.py").touch()
    assert functions.programs() != before
