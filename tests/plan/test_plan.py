"""The plan: which jobs there are, and the exact command lines that reach Slurm and Apptainer."""

import base64
import json
import re

import pytest
from plan import IMAGE, ROOT, Plan, placed

SMALL = {"steps": 100, "global_batch": 8}


def test_lists_the_whole_chain_without_slurm_or_apptainer(plan):
    sweep = {"megabytes": [64, 128], "nodes": [1, 2]}
    plan.configure(train={"one": SMALL}, benchmark={"memory": sweep})
    assert plan.planned() == [
        "benchmark_record 1x4",
        "benchmark_record 2x4",
        "benchmark_run 1x4",
        "benchmark_run 2x4",
        "cost",
        "prepare_data",
        "pull",
        "ready",
        "report",
        "smoke_test",
        "train_run one",
        "verdict",
    ]


def test_local_plan_has_no_container(plan):
    plan.configure(train={"one": SMALL})
    jobs = ["prepare_data", "ready", "report", "smoke_test", "train_run one"]
    assert plan.planned(profile="local") == jobs


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("pull", ["pull"]),
        ("smoke_test", ["pull", "smoke_test"]),
        ("train", ["prepare_data", "pull", "ready", "smoke_test", "train", "train_run one"]),
        (
            "benchmark",
            [
                *["benchmark", "benchmark_record 1x4", "benchmark_run 1x4"],
                *["pull", "smoke_test", "verdict"],
            ],
        ),
        (
            "node_check",
            [
                *["benchmark_record 1x4-jrc0101", "benchmark_record 1x4-jrc0102"],
                *["benchmark_run 1x4-jrc0101", "benchmark_run 1x4-jrc0102"],
                *["compare_nodes", "node_check", "pull", "smoke_test"],
            ],
        ),
    ],
)
def test_targets(plan, target, jobs):
    nodes = ["jrc[0101-0102]"]
    plan.configure(train={"one": SMALL}, benchmark={"memory": {}}, node_check={"nodes": nodes})
    assert plan.planned(target) == jobs


def test_configfile_and_config_keep_the_site(plan):
    """Both options of Snakemake would undo a site that the profile gave by `configfile`."""
    assert "pull" in plan.planned("--config", "account=other")


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("SCRATCH", "jutil env activate -p <project>"),
        ("SBATCH_ACCOUNT", "`export SBATCH_ACCOUNT=<account>`"),
    ],
)
def test_missing_variable_is_one_sentence(plan, variable, advice):
    del plan.environment[variable]
    result = plan.snakemake("--dry-run", check=False)
    assert result.returncode == 1
    (sentence,) = [line for line in result.stderr.splitlines() if not line.startswith("Using")]
    assert advice in sentence


def test_a_real_run_without_apptainer_is_refused(plan):
    plan.make_container()
    result = plan.snakemake("smoke_test", check=False)
    assert result.returncode == 1
    assert "there is no apptainer in PATH" in result.stderr
    assert not (plan.folder / "logs").exists()


NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {a: {steps: -1}}", "train.a.steps: must be at least 1, not -1 [JW003]"),
        ("tarin: {}", "tarin: unknown key; did you mean 'train'? [JW002]"),
        ("train: {a: {data: [/no/a b/ü]}}", "train.a.data: nothing matches /no/a b/ü [JW011]"),
        (
            "train: {größe: {}}",
            f'train: a name must be text that matches {NAME}, not "größe" [JW004]',
        ),
        ("train: {a: {}, b: {}, a: {}}", "config.yaml, line 1: a is there twice [JW005]"),
        ("- 1", "Config file must be given as JSON or YAML with keys at top level."),
        (
            "train: [",
            "Config file is not valid JSON or YAML. In case of YAML, make sure to not mix ",
        ),
    ],
)
def test_broken_configuration_is_one_sentence_of_snakemakes(plan, text, sentence):
    (plan.folder / "config.yaml").write_text(text)
    result = plan.snakemake("--dry-run", check=False)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory):
    """A chain that has run on stubs."""
    plan = Plan(tmp_path_factory.mktemp("plan"))
    plan.configure(
        platform="cpu",
        train={
            "one_node": SMALL,
            "two_nodes": SMALL | {"nodes": 2, "walltime": 600},
            "process_per_gpu": SMALL | {"nodes": 2, "processes_per_node": 4},
            "shared": SMALL | {"seed": [1, 2], "trainings_per_node": 2},
        },
        benchmark={
            "memory": {"rounds": 1, "megabytes": 1, "walltime": 40},
            "old": {"program": "compute", "rounds": 1, "sif": "$SCRATCH/old.sif"},
            "collective": {"rounds": 1, "nodes": 2, "processes_per_node": 4},
        },
        node_check={"nodes": ["jrc0102"], "benchmarks": ["memory"]},
    )
    plan.use_stubs()
    plan.make_container()
    plan.make_sif(plan.scratch / "old.sif")
    link = plan.folder.parent / "link"
    link.symlink_to(plan.folder)
    plan.environment["PWD"] = str(link)  # where the user's shell believes to be
    shell = ("XLA_FLAGS", "https_proxy", "PYTHONPATH", "APPTAINER_CLEANENV", "NCCL_DEBUG")
    plan.environment |= dict.fromkeys(shell, "of-the-host")
    output = plan.snakemake("train", "benchmark", "node_check").stderr
    assert "containers: ignored" not in output  # the jobs' command lines start them
    return plan


def common(plan, devices: int) -> list[str]:
    """Arguments that every program gets."""
    return [
        f"--devices={devices}",
        "--platform=cpu",
        f"--container-record={plan.record}",
        f"--image={IMAGE}",
        "--host-suffix=i",
    ]


def apptainer(plan, program: str) -> list[str]:
    """The one call of apptainer whose command contains ``program``."""
    (call,) = [c for c in plan.calls("apptainer") if any(program in word for word in c)]
    return call


def test_smoke_test_asks_slurm_for_one_whole_node(stubbed):
    (sbatch,) = [c for c in stubbed.calls("sbatch") if "rule_smoke_test" in c]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu-devel", "-t", "30"],
        *["--nodes=1", "--cpus-per-task=128", "--ntasks-per-node=1", "--gres=gpu:4"],
    ]


def in_container(plan, call: list[str]) -> list[str]:
    """Check how a job starts its container; returns the words of the program inside it."""
    start = ["exec", "--home", str(plan.folder), "--nv", "--bind", str(plan.scratch), str(plan.sif)]
    assert call[: len(start)] == start
    return call[len(start) :]


def test_smoke_test_runs_in_the_container(stubbed):
    words = in_container(stubbed, apptainer(stubbed, "smoke_test.py"))
    assert words[:7] == [
        "python3",
        str(ROOT / "workflow/scripts/smoke_test.py"),
        *common(stubbed, 4),
    ]
    assert words[-2:] == [
        f"--scratch={stubbed.scratch}/alice/jaxway",
        "--out=results/smoke_test.json",
    ]


def test_snakemakes_record_of_a_result_names_the_container(stubbed):
    name = base64.b64encode(b"results/train/two_nodes/summary.json").decode()
    record = json.loads((stubbed.folder / ".snakemake/metadata" / name).read_text())
    assert record["container_img_url"] == str(stubbed.sif)


def test_training_on_one_node_is_one_process_in_the_container(stubbed):
    (sbatch,) = [c for c in stubbed.calls("sbatch") if "rule_train_run_wildcards_one_node" in c]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu", "-t", "30"],
        *["--nodes=1", "--cpus-per-task=128", "--ntasks-per-node=1", "--gres=gpu:4"],
    ]
    words = in_container(stubbed, apptainer(stubbed, "train/one_node/"))
    check_training(stubbed, words, "one_node", devices=4)


def check_training(plan, words: list[str], name: str, devices: int) -> None:
    """Check the training program's own command line."""
    assert words[:7] == [
        "python3",
        str(ROOT / "workflow/scripts/train.py"),
        *common(plan, devices),
    ]
    assert "--steps=100" in words
    assert "--global-batch=8" in words
    data, state, states, out = words[-4:]
    assert re.fullmatch("--data-record=results/data/[0-9a-f]{8}.json", data)
    assert state == f"--state=results/train/{name}/state"
    assert states == f"--states={plan.scratch}/alice/jaxway/train/{name}"
    assert out == f"--out=results/train/{name}/summary.json"


@pytest.mark.parametrize(
    ("name", "walltime", "tasks", "cpus"),
    [
        ("two_nodes", "600", "--ntasks-per-node=1", "--cpus-per-task=128"),
        ("process_per_gpu", "30", "--ntasks-per-node=4", "--cpus-per-task=32"),
    ],
)
def test_several_processes_start_by_srun_around_apptainer(stubbed, name, walltime, tasks, cpus):
    (sbatch,) = [c for c in stubbed.calls("sbatch") if f"rule_train_run_wildcards_{name}" in c]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu", "-t", walltime],
        *["--nodes=2", cpus, tasks, "--gres=gpu:4"],
    ]
    (srun,) = [c for c in stubbed.calls("srun") if any(name in word for word in c)]
    program = srun.index("python3")
    assert srun[:program] == [
        *["--kill-on-bad-exit=1", "--cpu-bind=none", "--nodes=2", tasks, cpus],
        *["apptainer", "exec", "--home", str(stubbed.folder), "--nv"],
        *["--bind", str(stubbed.scratch), str(stubbed.sif)],
    ]
    check_training(stubbed, srun[program:], name, devices=8)
    assert apptainer(stubbed, f"train/{name}/") == srun[srun.index("exec") :]


def test_trainings_that_share_a_node_are_one_job(stubbed):
    (sbatch,) = [c for c in stubbed.calls("sbatch") if any("shared-seed" in word for word in c)]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu", "-t", "30"],
        *["--nodes=1", "--cpus-per-task=64", "--ntasks-per-node=2", "--gres=gpu:4"],
    ]
    for name in ("shared-seed=1", "shared-seed=2"):
        words = in_container(stubbed, apptainer(stubbed, f"train/{name}/"))
        check_training(stubbed, words, name, devices=2)
    seen = map(json.loads, (stubbed.folder / "environments").read_text().splitlines())
    assert {each.get("JAXWAY_GPUS") for each in seen} == {None, "0,1", "2,3"}


def test_benchmarks_of_one_placement_are_one_job(stubbed):
    (sbatch,) = [c for c in stubbed.calls("sbatch") if "rule_benchmark_run_wildcards_1x4" in c]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu-devel", "-t", "40"],
        *["--nodes=1", "--cpus-per-task=128", "--ntasks-per-node=1", "--gres=gpu:4"],
    ]
    assert not any("--nodelist" in word for word in sbatch)
    memory, old = (
        [call for call in stubbed.calls("apptainer") if any(program in word for word in call)]
        for program in ("benchmark_memory.py", "benchmark_compute.py")
    )
    assert len(memory) == 2  # one of them to check a node
    call = memory[0]
    program = call.index("python3")
    assert call[:program] == [
        *["exec", "--home", str(stubbed.folder), "--nv", "--bind", str(stubbed.scratch)],
        str(stubbed.sif),
    ]
    assert call[program:-1] == [
        *["python3", str(ROOT / "workflow/scripts/benchmark_memory.py"), *common(stubbed, 4)],
        *["--warmup=3", "--repeats=20", "--megabytes=1"],
        f"--scratch={stubbed.scratch}/alice/jaxway",
    ]
    assert call[-1].startswith("--out=")
    # One in another container takes turns with them.
    other = f"{stubbed.scratch}/old.sif"
    assert other in old[0]
    assert str(stubbed.sif) not in old[0]
    assert f"--container-record={other}.json" in old[0]
    assert not any(word.startswith("--image") for word in old[0])
    assert (stubbed.scratch / "old.sif.runs").is_dir()  # known as used


def test_benchmarks_of_several_processes_start_by_srun(stubbed):
    (srun,) = [c for c in stubbed.calls("srun") if any("collective" in word for word in c)]
    program = srun.index("python3")
    assert srun[:program] == [
        *["--kill-on-bad-exit=1", "--cpu-bind=none", "--nodes=2"],
        *["--ntasks-per-node=4", "--cpus-per-task=32"],
        *["apptainer", "exec", "--home", str(stubbed.folder), "--nv"],
        *["--bind", str(stubbed.scratch), str(stubbed.sif)],
    ]
    assert "--operations" in srun


def test_a_node_to_check_is_asked_for_by_name(stubbed):
    (sbatch,) = [
        c for c in stubbed.calls("sbatch") if "rule_benchmark_run_wildcards_1x4-jrc0102" in c
    ]
    assert "--nodelist=jrc0102" in sbatch
    found = json.loads((stubbed.folder / "results/node_check.json").read_text())
    assert found["nodes"] == {"jrc0102": []}


def test_a_node_whose_job_dies_is_named_too(plan):
    """The others are compared all the same."""
    nodes = {"nodes": ["jrc[0101-0102]"]}
    plan.configure(platform="cpu", benchmark={"memory": {"rounds": 1}}, node_check=nodes)
    plan.use_stubs()
    plan.make_container()
    plan.environment["STUB_CANCELLED"] = "--nodelist=jrc0102"
    result = plan.snakemake("node_check", check=False)
    assert result.returncode == 1
    assert "its job left no result" in result.stdout
    assert "exclude: [jrc0102]" in result.stdout


def test_data_are_prepared_once_for_trainings_that_share_them(stubbed):
    (record,) = (stubbed.folder / "results/data").glob("*.json")
    folder = json.loads(record.read_text())["folder"]
    store = f"{stubbed.scratch}/alice/jaxway/data"
    assert re.fullmatch(rf"{store}/[0-9a-f]{{16}}", folder)


def test_every_program_gets_the_sites_environment_and_none_of_the_shells(stubbed):
    """Behind srun, without it, and in rounds of benchmarks."""
    programs = (stubbed.folder / "environments").read_text().splitlines()
    assert len(programs) == 10
    for environment in map(json.loads, programs):
        assert environment["UCX_RC_TIMEOUT"] == "4s"
        assert environment["PWD"] == str(stubbed.folder)
        assert "of-the-host" not in environment.values()


def test_unknown_job_is_one_sentence(plan):
    plan.configure(train={"one": SMALL})
    result = plan.snakemake("results/train/two/summary.json", "--dry-run", check=False)
    assert result.returncode == 1
    assert "no job is named two; known: one [JW006]" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr


def test_plan_that_fails_a_check_is_refused_unless_checks_only_say_so(plan):
    plan.configure(train={"one": SMALL | {"validation_bytes": 10**11}})
    refused = plan.snakemake("train", profile="local", check=False)
    assert refused.returncode == 1
    (last,) = refused.stderr.strip().splitlines()[-1:]
    assert last.startswith("the plan cannot run, see FAIL above; nothing was submitted")
    assert not (plan.folder / "logs").exists()
    result = plan.snakemake("train", "--config", "preflight=False", profile="local", check=False)
    assert "FAIL data" in " ".join(result.stderr.split())
    (log,) = (plan.folder / "logs/prepare_data").iterdir()
    assert "data: too short" in log.read_text()


@pytest.mark.parametrize("profile", ["local", "jureca"])
@pytest.mark.parametrize("home", ["/dev/null", "/proc"])  # no folder, and one that is read-only
def test_a_run_needs_no_home(plan, profile, home):
    plan.environment["HOME"] = home
    assert "smoke_test" in plan.planned("smoke_test", profile=profile)
    assert (plan.folder / ".snakemake/cache/snakemake").is_dir()


def test_a_job_is_checked_as_snakemake_is_going_to_ask_for_it(plan):
    plan.use_stubs()
    plan.make_container()
    asked = ("slurm_partition=closed", "runtime=60", "qos=long", "slurm_account=other")
    words = [f"smoke_test:{resource}" for resource in asked]
    plan.snakemake("smoke_test", "--dry-run", "--set-resources", *words)
    calls = map(json.loads, (plan.folder / "calls.jsonl").read_text().splitlines())
    (checked,) = [call for call in calls if call[:2] == ["sbatch", "--test-only"]]
    assert {"--partition=closed", "--time=60", "--qos=long"} <= {*checked}
    assert [word for word in checked if "account" in word][-1] == "--account=other"


def test_a_dry_run_ends_with_its_checks_and_counts_every_attempt(plan):
    plan.use_stubs()
    plan.make_container()
    lines = plan.snakemake("smoke_test", "--dry-run", "--retries=1").stderr.strip().splitlines()
    assert "smoke_test: 1 to 2 jobs, each 1 node and 30 minutes at most: 1 node-h" in lines[-2]
    assert lines[-1].split()[:5] == ["cost", "at", "most", "1", "node-h"]
