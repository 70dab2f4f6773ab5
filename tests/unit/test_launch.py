"""How steps are started: command lines, environments, and what Slurm is asked for."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from examples import make_config, make_placement, make_site, make_training
from jaxway.config.jobs import Options
from jaxway.config.schema import WORKFLOW, ConfigurationError
from jaxway.config.site import Site
from jaxway.launch import (
    Launch,
    command_line,
    inherited_environment,
    option_words,
    prepare_environment,
)
from jaxway_shared.benchmark import BenchmarkPlan
from jaxway_shared.environment import SHELL_RE

ROOT = Path("/j")
ENVIRONMENT = {"A": "one word", "B": ""}


def make_launch(site: Site | None = None, contained: bool = True, **settings: Any) -> Launch:
    """Command lines at a site whose node has 128 cores."""
    site = site or make_site(cores_per_node=128, sif="/c/jax.sif", environment=ENVIRONMENT)
    config = make_config(site, image="docker://x", **settings)
    return Launch(ROOT, config, site, contained, "--nv --bind $SCRATCH")


LINK = Path("results/container/jax.sif").absolute()
RECORD = [f"--container-record={LINK}.json", "--image=docker://x"]
SRUN = ["srun", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=32"]
APPTAINER = ["apptainer", "exec", "--home", "$PWD", "--nv", "--bind", "/s", str(LINK)]
CLEAN = ["bash", "/j/workflow/scripts/clean_environment.sh", SHELL_RE, ""]


@pytest.mark.parametrize(
    ("placement", "contained", "before", "after"),
    [
        ({}, False, [], ["--devices=4"]),
        ({}, True, APPTAINER, ["--devices=4", *RECORD]),
        ({"nodes": 2, "processes_per_node": 4}, False, SRUN, ["--devices=8"]),
        (
            {"processes_per_node": 4},
            False,
            ["srun", "--nodes=1", "--ntasks-per-node=4", "--cpus-per-task=32"],
            ["--devices=4"],
        ),
        ({"trainings_per_node": 2}, False, [], ["--devices=2"]),
        ({"trainings_per_node": 16}, False, [], ["--devices=1"]),
        (
            {"nodes": 2, "processes_per_node": 4},
            True,
            [*SRUN, *APPTAINER],
            ["--devices=8", *RECORD],
        ),
    ],
)
def test_command_line_of_a_program(monkeypatch, placement, contained, before, after) -> None:
    monkeypatch.setenv("SCRATCH", "/s")
    training = make_training(placement=make_placement(**placement))
    words = make_launch(contained=contained).program(training, "train")
    options = option_words(training.options)
    start, program = words.index("python3"), words.index(options[0])
    assert words[:start] == [*CLEAN, "env", "A=one word", "B=", *before]
    assert words[start:program] == ["python3", "/j/workflow/scripts/train.py", *after]
    assert words[program:] == options


def test_what_is_set_reaches_every_program() -> None:
    site = make_site(host_suffix="i", platform="cuda")
    words = make_launch(site, platform="cpu").smoke_test()
    assert {"--platform=cpu", "--host-suffix=i", "--scratch=scratch"} <= {*words}


def test_a_benchmarks_own_container_has_its_own_record_and_no_packages(monkeypatch) -> None:
    monkeypatch.setenv("SCRATCH", "/s")
    benchmark = {"old": {"program": "memory", "sif": "/c/old.sif"}, "memory": {}}
    site = make_site(sif="/c/jax.sif", container_build=False)  # packages lie in a folder
    launch = make_launch(site, benchmark=benchmark, packages={"python": ["einops"]})
    old, usual = (launch.benchmark(launch.config.benchmark[name]) for name in ("old", "memory"))
    assert "--container-record=/c/old.sif.json" in old
    assert old[old.index("apptainer") :][:8] == [*APPTAINER[:-1], "/c/old.sif"]
    assert not any(word.startswith(("--image", "PYTHONPATH")) for word in old)
    assert any(word.startswith("--image") for word in usual)
    assert any(word == "PYTHONPATH=/opt/jaxway-packages" for word in usual)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"global_batch": 8}, ["--global-batch=8"]),
        ({"layers": None}, []),
        ({"check": True, "trace": False}, ["--check", "--no-trace"]),
        ({"megabytes": [1, 2]}, ["--megabytes", "1", "2"]),
        ({"command": "bash -c 'a b'"}, ["--command=bash -c 'a b'"]),
    ],
)
def test_options_become_flags(options: Options, words: list[str]) -> None:
    assert option_words(options) == words


def test_a_shell_reads_the_words_as_they_are(tmp_path: Path) -> None:
    words = ["printf", "%s|", "a b", "it's", "$HOME", "{x}", "$PWD", ""]
    command = ["bash", "-c", command_line(words)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == f"a b|it's|$HOME|{{x}}|{tmp_path}||"


def test_plan_of_an_allocation_is_not_changed_by_its_walltime_or_partition() -> None:
    def plan(**entry: Any) -> BenchmarkPlan:
        launch = make_launch(benchmark={"io": entry, "memory": entry})
        (allocation,) = launch.config.allocations.values()
        return launch.plan(allocation)

    assert plan(rounds=2) == plan(rounds=2, walltime=7, partition="other")
    assert plan(rounds=2) != plan(rounds=2, gpus_per_node=2)
    first, second = plan(rounds=2, timeout_minutes=1).benchmarks
    assert (first.name, second.name) == ("io", "memory")
    assert (first.rounds, first.timeout_minutes) == (2, 1)
    words = shlex.split(first.command)
    assert words[words.index("python3") + 1] == "/j/workflow/scripts/benchmark_io.py"


@pytest.mark.parametrize(
    ("placement", "threads", "resources"),
    [
        ({}, 128, {"nodes": 1, "tasks_per_node": 1, "gres": "gpu:4", "slurm_extra": ""}),
        (
            {"nodes": 2, "processes_per_node": 4, "gpus_per_node": 4, "node": "n7"},
            32,
            {"nodes": 2, "tasks_per_node": 4, "slurm_extra": "--nodelist=n7"},
        ),
        ({"trainings_per_node": 4}, 32, {"tasks_per_node": 4, "gres": "gpu:4"}),
        ({"trainings_per_node": 16}, 32, {"tasks_per_node": 4, "gres": "gpu:4"}),
        ({"options": ("--exclude=n1,n[3-4]",)}, 128, {"slurm_extra": "--exclude=n1,n[3-4]"}),
    ],
)
def test_what_slurm_is_asked_for(placement, threads, resources) -> None:
    launch, where = make_launch(account="project"), make_placement(**placement)
    assert launch.threads(where) == threads
    found = launch.resources(where)
    assert resources.items() <= found.items()
    assert (found["runtime"], found["slurm_partition"]) == (30, "gpu")
    assert (found["slurm_account"], found["mem_mb"]) == ("project", 0)


def test_without_slurm_a_job_asks_for_the_one_node() -> None:
    launch = make_launch(make_site(launcher=None), contained=False)
    assert launch.resources(make_placement()) == {"nodes": 1}
    assert launch.threads(make_placement()) == os.cpu_count()


def test_pull_is_told_whose_signature_the_site_wants() -> None:
    site = make_site(image_key="/p/keys/site.pub")
    assert "--key=/p/keys/site.pub" in make_launch(site).pull()
    assert not any(word.startswith("--key") for word in make_launch().pull())


def test_packages_are_added_with_the_binds_of_jobs(monkeypatch) -> None:
    monkeypatch.setenv("SCRATCH", "/s")
    launch = make_launch(packages={"python": ["einops", "x"], "debian": ["git"]}, tmpdir="/t")
    words = launch.add_packages()
    assert words[:2] == ["add-packages", f"--base={LINK}"]
    assert words[2] == f"--link={launch.container.output}"
    python = ["--python", "einops", "x"]
    assert words[3:] == ["--tmpdir=/t", *python, "--debian", "git", "--", *APPTAINER[4:7]]


@pytest.mark.parametrize(
    "settings",
    [{"packages": {"python": ["einops"]}}, {"benchmark": {"io": {"sif": "/c/old.sif"}}}],
)
def test_what_needs_a_container_is_refused_without_one(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="here jobs run without"):
        make_launch(contained=False, **settings)


# -------------------------------------------------------------------------------- what jobs inherit


# What a shell of an HPC system may have: by its user, modules, conda, Spack, a proxy's setup.
STAYS_OUTSIDE = (
    *("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONOPTIMIZE", "LD_PRELOAD", "LD_AUDIT"),
    *(
        "APPTAINER_CLEANENV",
        "APPTAINER_BINDPATH",
        "APPTAINERENV_JAX_PLATFORMS",
        "APPTAINER_NO_HOME",
    ),
    *("SINGULARITY_BIND", "SINGULARITYENV_LD_PRELOAD", "JAX_PLATFORMS", "JAX_ENABLE_X64"),
    *("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "NCCL_P2P_DISABLE", "TF_FORCE_UNIFIED_MEMORY"),
    *("APPTAINER_DOCKER_PASSWORD", "BASH_ENV", "MAXTEXT_HOME", "OMP_NUM_THREADS"),
    *("UCX_TLS", "GLOO_SOCKET_IFNAME"),
    *("CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "M_LEARNING_RATE"),
)
COMES_IN = (
    *("JAXWAY_COMMIT", "SLURM_JOB_ID", "HF_HOME", "MODULEPATH", "MY_LD_X", "LD_LIBRARY_PATH"),
    "CUDA_VISIBLE_DEVICES",
)


def test_the_shell_has_no_say_in_a_job() -> None:
    """In the command that bash runs on a node; a value with newlines hides no variable."""
    site = make_site(inherited_variables=["LD_LIBRARY_PATH", "OTHER"])
    config = make_config(site, environment={"NCCL_DEBUG": "INFO", "https_proxy": "http://p"})
    launch = Launch(WORKFLOW.parent, config, site, contained=False)
    shell = dict.fromkeys([*STAYS_OUTSIDE, *COMES_IN], "\nnonsense=1\n") | {
        "PATH": os.environ["PATH"]
    }
    print_names = [sys.executable, "-c", "import os; print(*sorted(os.environ))"]
    line = command_line([*launch.environment(None), *print_names])
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {line}"], env=shell, capture_output=True, text=True
    )
    found = {*done.stdout.split()} - {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
    assert found == {*COMES_IN, "PATH", "NCCL_DEBUG", "https_proxy"}, done.stderr


def test_a_job_has_variables_of_its_own() -> None:
    """One that all have gets another value; a list of them is a sweep."""
    shares = [{"XLA_PYTHON_CLIENT_MEM_FRACTION": share} for share in ("0.8", "0.9")]
    entries = {"train": {"environment": shares[0]}, "io": {"environment": shares}}
    launch = make_launch(
        environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.7"},
        train={"a": {"data": ["python"], "environment": shares[1]}, "b": {"data": ["python"]}},
        benchmark=entries,
        smoke_test={"environment": {"A": "0"}},
    )
    config, name = launch.config, "XLA_PYTHON_CLIENT_MEM_FRACTION"
    lines = [launch.train(config.train[job]) for job in ("a", "b")]
    lines += [launch.benchmark(job) for job in config.benchmark.values()]
    found = [word.partition("=")[2] for line in lines for word in line if word.startswith(name)]
    assert found == ["0.9", "0.7", "0.8", "0.8", "0.9"]
    assert "A=0" in launch.smoke_test()
    assert "A=one word" not in launch.smoke_test()


def test_without_a_container_a_job_runs_this_python() -> None:
    environ = {"PATH": "/bin", "HOME": "/h", "PWD": "/a/link"}
    found = inherited_environment(environ, True, "c0ffee")
    assert found == {**environ, "JAXWAY_COMMIT": "c0ffee", "PWD": os.getcwd()}
    outside = inherited_environment(environ, False, None)
    assert outside["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert outside["JAXWAY_COMMIT"] == "unknown"


def test_packages_in_a_folder_are_bound_and_come_first() -> None:
    site = make_site(sif="/c/jax.sif", container_build=False, environment={"PYTHONPATH": "/own"})
    launch = make_launch(site, packages={"python": ["einops"]})
    folder = launch.container.packages
    words = launch.smoke_test()
    assert "PYTHONPATH=/opt/jaxway-packages:/own" in words
    bind = ["--bind", f"{folder}:/opt/jaxway-packages:ro"]
    assert words[words.index(str(LINK)) - 2 :][:2] == bind
    assert not any(word.endswith(":ro") for word in launch.add_packages())  # it is not there yet


def test_a_job_dumps_no_core() -> None:
    """But what a command of the user's wants, it can have."""
    clean = ["bash", str(WORKFLOW / "scripts/clean_environment.sh"), "^$", "", "bash", "-c"]
    show = "ulimit -c; ulimit -S -c hard && echo as before"
    before = ["bash", "-c", 'ulimit -S -c hard; exec "$@"', "bash"]
    result = subprocess.run([*before, *clean, show], capture_output=True, text=True)
    assert result.stdout == "0\nas before\n"


def test_a_jobs_deadline_is_kept_before_slurms_variables_are_dropped() -> None:
    environ = {"PATH": "/bin", "SLURM_JOB_END_TIME": "1790000000"}
    found = inherited_environment(environ, False, None)
    assert found["JAXWAY_DEADLINE"] == "1790000000"


def test_code_is_dirty_when_it_has_changed_and_not_when_its_configuration_has(
    tmp_path, monkeypatch
):
    for name in ("PATH", "PWD", "JAXWAY_COMMIT"):
        monkeypatch.setenv(name, os.environ["PATH"])
    (tmp_path / "config").mkdir()
    files = tmp_path / "config/config.yaml", tmp_path / "code.py"
    for file in files:
        file.touch()
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    for file, dirty in zip(files, (False, True), strict=True):
        file.write_text("changed")
        prepare_environment(tmp_path, contained=False)
        assert os.environ["JAXWAY_COMMIT"].endswith("-dirty") == dirty
