"""The container in the plan: its checks, packages on top of it, and entering it."""

import os
import subprocess
import sys

import pytest
from plan import DIGEST, IMAGE, ROOT, Plan

PACKAGES = {"python": ["einops==0.8.0"]}


def flip_a_bit(plan: Plan) -> None:
    content = bytearray(plan.sif.read_bytes())
    content[3] ^= 1
    plan.sif.write_bytes(content)


def test_changed_container_is_found_before_a_job_is_queued(plan):
    plan.use_stubs()
    plan.make_container()
    flip_a_bit(plan)
    result = plan.snakemake("smoke_test", check=False)
    assert result.returncode == 1
    assert "jax.sif has changed since it was made" in " ".join(result.stderr.split())
    assert not plan.calls("sbatch")


@pytest.mark.parametrize(("nodes", "command"), [(1, "apptainer"), (2, "apptainer"), (2, "srun")])
def test_what_fails_before_the_program_is_in_the_log_that_is_named(plan, nodes, command):
    plan.use_stubs()
    plan.make_container()
    plan.configure(smoke_test={"nodes": nodes})
    fails = (
        '#!/bin/sh\n[ "$1" = --version ] && exec echo 1.4.5\necho "no such mount" >&2; exit 255\n'
    )
    (plan.folder / f"bin/{command}").write_text(fails)
    result = plan.snakemake("smoke_test", check=False)
    assert result.returncode == 1
    assert (plan.folder / "logs/smoke_test.log").read_text() == "no such mount\n"
    assert "no such mount" in result.stdout + result.stderr


def test_verify_container_computes_the_hash(plan):
    plan.use_stubs()
    plan.make_container()
    plan.snakemake("verify_container")
    made = plan.sif.stat()
    flip_a_bit(plan)
    os.utime(plan.sif, ns=(made.st_atime_ns, made.st_mtime_ns))
    result = plan.snakemake("verify_container", check=False)
    assert result.returncode == 1
    assert "jax.sif has changed since it was made" in " ".join(result.stderr.split())


def test_where_login_nodes_refuse_apptainer_containers_are_made_in_jobs(plan):
    """The stub says what such sites say, and works in jobs alone."""
    plan.use_stubs()
    refusing = "#!/bin/sh\necho Apptainer runs on compute nodes only. Sorry!\n"
    stub = plan.folder / "bin/apptainer"
    elsewhere = stub.rename(plan.folder / "bin/apptainer_there")
    stub.write_text(f'{refusing}[ -z "$SLURM_JOB_ID" ] || exec {elsewhere} "$@"\n')
    elsewhere.write_text(elsewhere.read_text().replace("Path(sys.argv[0]).name", '"apptainer"'))
    stub.chmod(0o755)
    (plan.folder / "one.tar").write_text("a stub of an image")
    plan.configure(image="docker-archive:one.tar")
    site = plan.profiles / "jureca/site.yaml"
    site.write_text(site.read_text().replace("partitions:\n", "partitions:\n  pull: online\n"))
    plan.snakemake("smoke_test")
    pull, smoke_test = plan.calls("sbatch")
    assert {"online", "--cpus-per-task=128"} <= set(pull)
    assert not any("gpu" in word for word in pull)
    assert "dc-gpu-devel" in smoke_test
    plan.sif.resolve().unlink()
    lost = plan.snakemake("smoke_test", "--forcerun=smoke_test", check=False)
    assert "pull --forcerun pull` (with your --profile) submits its job [JW209]" in (
        " ".join(lost.stderr.split())
    )


def test_failed_pull_keeps_the_old_container(plan):
    plan.use_stubs()
    plan.make_container()
    plan.snakemake("smoke_test")
    files = {file: file.read_bytes() for file in (plan.sif, plan.record, plan.digest)}
    working = (plan.folder / "bin/apptainer").read_text()
    (plan.folder / "bin/apptainer").write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1.4.5\n')
    assert plan.snakemake("pull", "--forcerun=pull", check=False).returncode == 1
    assert {file: file.read_bytes() for file in files} == files
    (plan.folder / "bin/apptainer").write_text(working)
    assert plan.planned("smoke_test") == []


def test_missing_container_is_rebuilt_and_reruns_nothing_else(plan):
    plan.use_stubs()
    (plan.folder / "one.tar").write_text("a stub of an image")
    training = {"one": {"steps": 100, "global_batch": 8}}
    plan.configure(image="docker-archive:one.tar", train=training)
    plan.snakemake("smoke_test")
    plan.sif.resolve().unlink()
    assert plan.planned("smoke_test") == []
    assert plan.planned("pull") == ["pull"]
    assert plan.planned("train") == ["prepare_data", "ready", "train", "train_run one"]
    assert "jax.sif is missing: restoring it" in plan.snakemake("train").stderr
    assert plan.sif.exists()
    plan.sif.resolve().unlink()
    plan.snakemake("smoke_test", "--forcerun=pull")
    assert plan.sif.exists()


def test_pinning_the_present_image_pulls_nothing(plan):
    plan.use_stubs()
    plan.make_container()
    plan.snakemake("smoke_test")
    plan.configure(image=f"{IMAGE.rpartition(':')[0]}@{DIGEST}")
    assert plan.planned("pull") == []


def test_container_of_another_image_is_refused_before_a_job_is_queued(plan):
    plan.use_stubs()
    plan.make_container()
    plan.configure(image="docker://h.org/mine")
    result = plan.snakemake("smoke_test", check=False)
    assert result.returncode == 1
    output = " ".join(result.stderr.split())
    assert f"jax.sif leads to {IMAGE}, not docker://h.org/mine" in output
    assert "--forcerun pull" in output
    assert not plan.calls("sbatch")


def test_changed_container_below_packages_is_found(plan):
    plan.use_stubs()
    plan.make_container()
    plan.configure(packages=PACKAGES)
    flip_a_bit(plan)
    result = plan.snakemake("smoke_test", check=False)
    assert "jax.sif has changed since it was made" in " ".join(result.stderr.split())


def test_password_in_the_image_name_is_refused_and_written_nowhere(plan):
    plan.use_stubs()
    plan.configure(image="docker://alice:secret@h.org/a:tag")
    result = plan.snakemake("pull", check=False)
    assert result.returncode == 1
    assert "APPTAINER_DOCKER_PASSWORD" in result.stderr
    assert "secret" not in result.stderr + result.stdout
    files = [f for f in plan.folder.rglob("*") if f.is_file() and f.name != "config.yaml"]
    assert not any(b"secret" in file.read_bytes() for file in files)


# --------------------------------------------------------------------------------------- packages


def test_packages_are_added_before_any_job(plan):
    plan.configure(packages=PACKAGES)
    assert plan.planned() == ["add_packages", "cost", "pull", "report", "smoke_test"]


def test_debian_packages_need_a_site_that_builds(plan):
    plan.configure(packages={"debian": ["graphviz"]})
    result = plan.snakemake("--dry-run", check=False)
    assert result.returncode == 1
    assert "packages.debian: at jureca users cannot build containers" in result.stderr
    assert "Traceback" not in result.stderr


def test_record_of_another_version_is_one_sentence(plan):
    plan.use_stubs()
    plan.make_container()
    plan.record.write_text('{"schema_version": 99}')
    result = plan.snakemake("smoke_test", check=False)
    assert result.returncode == 1
    output = " ".join(result.stderr.split())
    assert "jax.sif.json is a container's record of schema version 99" in output
    assert f"remove the container (`rm -r {plan.sif}`), and the next run makes it" in output
    assert "Traceback" not in output
    assert not plan.calls("sbatch")


def test_packages_need_a_container(plan):
    plan.configure(packages=PACKAGES)
    result = plan.snakemake("--dry-run", profile="local", check=False)
    assert result.returncode == 1
    assert "packages: they are added to a container" in result.stderr
    assert "Traceback" not in result.stderr


# ------------------------------------------------------------------------------------ shell, exec


def enter(plan: Plan, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `jaxway shell` or `jaxway exec` with JURECA's profile."""
    program = [sys.executable, ROOT / "workflow/jaxway", command]
    options = ["--profile", ROOT / "profiles/jureca", "--configfile", "config.yaml"]
    return subprocess.run(
        [*map(str, [*program, *options]), *words],
        cwd=plan.folder,
        env=plan.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_exec_runs_where_and_as_the_smoke_test_does(plan):
    plan.use_stubs()
    plan.make_container()
    done = enter(plan, "exec", "env")
    assert done.returncode == 0, done.stderr
    (srun,) = plan.calls("srun")
    in_container = [
        "--quiet",
        "exec",
        "--home",
        str(plan.folder),
        "--nv",
        "--bind",
        str(plan.scratch),
    ]
    in_container += [str(plan.sif), "env"]
    assert srun == [
        *["--kill-on-bad-exit=1", "--cpu-bind=none", "--nodes=1", "--gres=gpu:4", "--time=30"],
        *["--partition=dc-gpu-devel", "--account=training", "--ntasks=1", "--cpus-per-task=128"],
        *["apptainer", *in_container],
    ]
    assert plan.calls("apptainer") == [in_container]
    assert "NCCL_SOCKET_IFNAME=ib0" in done.stdout.splitlines()


def test_shell_on_this_node_needs_no_account(plan):
    del plan.environment["SBATCH_ACCOUNT"]
    plan.use_stubs()
    plan.make_container()
    enter(plan, "shell", "--here")
    (call,) = plan.calls("apptainer")
    assert (call[1], call[-1]) == ("shell", str(plan.sif))


def test_exec_returns_the_exit_code_of_its_command(plan):
    plan.use_stubs()
    plan.make_container()
    assert enter(plan, "exec", "--here", "--", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda plan: plan.sif.resolve().unlink(), "does not exist: `snakemake --profile"),
        (lambda plan: plan.configure(image="docker://h.org/mine"), "not docker://h.org/mine"),
        (flip_a_bit, "has changed since it was made"),
        (lambda plan: plan.environment.pop("SCRATCH"), "$SCRATCH is not set: run `jutil"),
        (lambda plan: plan.configure(tarin={}), "tarin: unknown key"),
        (lambda plan: (plan.folder / "config.yaml").unlink(), "No such file"),
    ],
)
def test_no_container_to_enter_is_one_sentence(plan, spoil, sentence):
    plan.use_stubs()
    plan.make_container()
    spoil(plan)
    done = enter(plan, "exec", "true")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
