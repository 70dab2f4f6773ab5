"""The chain on the cluster with profiles/jureca as it is: its results, its reasons, its faults."""

import json
import random
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from jaxway.slurm import accounting
from jaxway_shared.training import TrainingState, read_segments
from nodes import Checkout, Cluster

SCRATCH = "/p/scratch/training"
SIF = f"{SCRATCH}/jureca_containers/jax.sif"
SMALL: dict[str, Any] = {
    **{"layers": 1, "width": 32, "heads": 2, "context": 32, "global_batch": 8, "warmup_steps": 2},
    **{"steps": 20, "validation_bytes": 1024, "log_every": 5, "checkpoint_minutes": 0.01},
    "data": ["workflow/scripts/*.py"],
}
# Long enough to be caught between its first checkpoint and its end, and soon done when resumed.
SLOW = SMALL | {"steps": 800, "log_every": 10, "gpus_per_node": 1, "walltime": 60}
LONG = SLOW | {"log_every": 1, "steps": 2000, "max_jobs": 20}
DEFAULT = yaml.safe_load(Path("config/config.yaml").read_text())
QUICK = {"rounds": 1, "repeats": 2, "warmup": 1}
SCORED = {"validation_bytes": 20000, "max_jobs": 1}  # enough for many batches
CHAIN: dict[str, dict[str, Any]] = {
    "train": {
        "one_node": SMALL | SCORED,
        "two_nodes": SMALL | SCORED | {"nodes": 2, "processes_per_node": 2, "fsdp": 2, "tensor": 2},
    },
    # The whole default suite on one node, small, and on two what sends between them.
    "benchmark": {
        "compute": QUICK | {"shapes": ["64x64x64"]},
        **{name: QUICK | {"megabytes": 1} for name in ("io", "memory")},
        "collective": QUICK | {"nodes": [1, 2], "largest": 16},
        "train": QUICK | {"nodes": [1, 2], "batch_per_device": 1},
        "elsewhere": QUICK | {"program": "memory", "megabytes": 1, "partition": "dc-gpu"},
    },
}
ALLOCATIONS = ("1x4", "2x4", "1x4-dc-gpu")
# What a shell may have of proxies, modules, conda and Spack; PYTHONHOME would end Snakemake, too.
NONSENSE = (
    *("http_proxy", "https_proxy", "ALL_PROXY", "grpc_proxy", "PYTHONPATH", "PYTHONSTARTUP"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "APPTAINER_BINDPATH", "APPTAINER_CLEANENV", "BASH_ENV"),
    *("SINGULARITY_BIND", "APPTAINERENV_JAX_PLATFORMS", "JAX_PLATFORMS", "JAX_ENABLE_X64"),
    *("XLA_FLAGS", "NCCL_SOCKET_IFNAME", "CONDA_PREFIX", "SPACK_ROOT", "MODULEPATH"),
    *("EBROOTPYTHON", "CPATH", "TMPDIR", "OMPI_MCA_btl", "SRUN_CPUS_PER_TASK", "SLURM_NTASKS"),
    *("SBATCH_EXPORT", "GLOO_SOCKET_IFNAME", "MAXTEXT_HOME", "OMP_NUM_THREADS", "UCX_TLS"),
)
Json = dict[str, Any]

pytestmark = pytest.mark.usefixtures("repaired")


def queue(cluster: Cluster, user: str = "alice") -> dict[str, str]:
    """Slurm's ids of a user's jobs that have not ended, by what they make."""
    output = cluster.run(f"squeue --user={user} --noheader --format=%k=%i").stdout.split()
    return {
        comment.split("_wildcards_")[-1]: job for comment, job in (x.split("=") for x in output)
    }


def state(cluster: Cluster, training: str) -> Path:
    """Folder of a training's newest state (more steps have a new one); /nonexistent before that."""
    found = cluster.path(f"{SCRATCH}/alice/jaxway/train").glob(f"{training}-*")
    return max(found, key=lambda path: path.stat().st_mtime, default=Path("/nonexistent"))


def last_checkpoint_step(cluster: Cluster, training: str) -> int:
    """Step of the checkpoint from which a training would resume."""
    return TrainingState.read(state(cluster, training)).last_checkpoint_step or 0


@pytest.fixture(scope="module")
def alice(cluster: Cluster, pull: object) -> Checkout:
    """The checkout in which the whole chain has run once, after the pull, from a shell full of
    nonsense."""
    checkout = Checkout(cluster)
    shell = dict.fromkeys(NONSENSE, "/nonsense")
    with checkout.start(checkout.configure("chain", CHAIN), **shell) as snakemake:
        code, output = snakemake.wait(400)
    assert code == 0, output
    return checkout


def result(checkout: Checkout, name: str) -> Json:
    return json.loads(checkout.path(f"results/{name}.json").read_text())


def provenances(checkout: Checkout) -> dict[str, Json]:
    """Those of all results of the chain."""
    names = ("smoke_test", "train/one_node/summary", "train/two_nodes/summary")
    seen = {name: result(checkout, name)["provenance"] for name in names}
    for allocation in ALLOCATIONS:
        for benchmark in result(checkout, f"benchmark/{allocation}")["benchmarks"]:
            seen[f"{allocation} {benchmark['name']}"] = benchmark["provenance"]
    assert len(seen) == 3 + len(DEFAULT["benchmark"]) + 2 + 1
    return seen


# ------------------------------------------------------------------------------------- the chain


def test_every_result_records_image_and_node(cluster: Cluster, alice: Checkout) -> None:
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    url = "https://nvcr.io/v2/nvidia/jax/manifests/24.10-maxtext-py3"
    head = cluster.run(f"curl --fail -sIH 'Accept: {kind}' {url}").stdout
    digest = re.search(r"(?i)docker-content-digest: (\S+)", head)
    assert digest
    seen = provenances(alice)
    for name, provenance in seen.items():
        assert provenance["container"]["digest"] == digest[1]
        both = name == "train/two_nodes/summary" or name.startswith("2x4 ")
        assert re.fullmatch(r"jrc\[0101-0102\]" if both else "jrc010[12]", provenance["nodes"])
        assert provenance["devices"] == (8 if both else 4)
    assert seen["train/two_nodes/summary"]["processes"] == 4
    assert digest[1] in alice.path("results/report.html").read_text()


def losses(checkout: Checkout, training: str) -> list[float]:
    """Loss of each step that a training logged."""
    lines = checkout.path(f"results/train/{training}/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_four_processes_on_two_nodes_learn_what_one_learns(alice: Checkout) -> None:
    """Split by data, fsdp and tensor: the same sums in another order. float32 rounds at 6e-8."""
    one, four = losses(alice, "one_node"), losses(alice, "two_nodes")
    assert len(one) == 4
    assert one == pytest.approx(four, rel=1e-3)


def test_a_shell_full_of_nonsense_changes_nothing(alice: Checkout) -> None:
    for found in provenances(alice).values():
        assert found["job"] and found["commit"]
        assert found["environment"]["NCCL_SOCKET_IFNAME"] == "ib0"
        assert "/nonsense" not in found["environment"].values()
    alice.run(alice.configure("clean", {"train": {"clean": SMALL | SCORED}}), "train", timeout=300)
    assert losses(alice, "clean") == losses(alice, "one_node")


def test_training_passes_its_own_tests_in_the_container(cluster: Cluster, alice: Checkout) -> None:
    """With its old JAX and orbax; pytest is the nodes'. Without what does not depend on these, and
    what other tests here do in the container: signals, kills, more steps and several processes."""
    tests = "training/test_training_re*.py test_learning.py test_model.py"
    without = ["signal", "more_steps", "killed", "finite", "fit", "final_loss"]
    without += ["stops[10]", "stops[2]", "steps[1]", "steps[2]", "softmax[3072]", "gone", "lost"]
    without += ["pandas", "onednn"]
    lib = f"{SCRATCH}/pytest"
    lent = "pytest pytest_timeout* _pytest py.py pluggy iniconfig packaging pygments"
    workflow = f"{alice.folder}/workflow"
    cluster.run(
        f"mkdir {lib}; cd /p/software/jaxway/lib/python3*/site-packages; cp -r {lent} {lib}"
    )
    done = cluster.run(
        f"cd {alice.folder}/tests/programs; export PYTHONPATH={lib}:{workflow}:{workflow}/scripts; "
        "srun -N1 -t 30 "
        f"apptainer exec --bind $SCRATCH,/p/project1 {SIF} python3 -m pytest -p no:cacheprovider "
        f"--quiet -k 'not ({' or '.join(without)})' {tests}",
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[2-9]\d passed, \d+ deselected in", done.stdout, re.MULTILINE), done.stdout
    cluster.run(["rm", "-r", lib])


def test_account_and_partition_reach_slurm(cluster: Cluster, alice: Checkout) -> None:
    jobs = {
        benchmark["provenance"]["job"]
        for allocation in ALLOCATIONS
        for benchmark in result(alice, f"benchmark/{allocation}")["benchmarks"]
    }
    assert len(jobs) == len(ALLOCATIONS)  # one for all benchmarks of a placement
    query = f"sacct --noheader --allocations --jobs={','.join(jobs)} --format=account,partition%20"
    lines = [line.split() for line in cluster.run(query).stdout.splitlines()]
    assert sorted(lines) == [["training", "dc-gpu"], *[["training", "dc-gpu-devel"]] * 2]


def test_cost_is_what_slurm_has_recorded(cluster: Cluster, alice: Checkout) -> None:
    """To the second what was used; to the minute, of which limits are, what was estimated."""
    jobs = result(alice, "cost")["jobs"]
    used = {job["job"]: job["nodes"] * job["seconds"] for job in jobs}
    assert len({job["run"] for job in jobs}) == 1
    assert len(used) == 3 + len(ALLOCATIONS)
    fields = "JobID,CPUTimeRAW,TimelimitRaw,AllocNodes"
    query = f"sacct --noheader --allocations --jobs={','.join(used)} --format={fields}"
    lines = [line.split() for line in cluster.run(query).stdout.splitlines()]
    recorded = {job: [*map(int, numbers)] for job, *numbers in lines}
    assert used == {job: cores // 128 for job, (cores, _, _) in recorded.items()}
    most = sum(minutes * nodes for _, minutes, nodes in recorded.values()) / 60
    output = alice.run("chain.yaml", "preflight", timeout=60)
    assert f"at most {accounting.in_words(most, 128)} in all" in output


def test_finished_chain_has_nothing_to_do(alice: Checkout) -> None:
    assert "Nothing to be done" in alice.run("chain.yaml", "--dry-run", timeout=60)


# ------------------------------------------------------------------------------- what is refused


def test_slurms_refusals_are_reported(cluster: Cluster, alice: Checkout) -> None:
    """One job at a time is allowed, which preflight's look at each job does not show."""
    limit = "sacctmgr -i modify user alice set MaxSubmitJobs={}"
    cluster.run(limit.format(1), user="root")
    nothing = {"program": "command", "command": "true"}
    config = alice.configure("refused", {"train": {"first": nothing, "second": nothing}})
    try:
        with alice.start(config, "train") as snakemake:
            code, output = snakemake.wait(180)
    finally:
        cluster.run(limit.format(-1), user="root")
    assert code == 1
    assert "AssocMaxSubmitJobLimit" in output


# ------------------------------------------------------------------------------------ what fails


def catch(cluster: Cluster, training: str, seize: Callable[[str], object], after: int = 0) -> str:
    """Does something to a training, by its job's id, once a step later than ``after`` is safe."""
    cluster.wait_for(
        lambda: last_checkpoint_step(cluster, training) > after,
        timeout=180,
        what=f"a checkpoint of {training} after step {after}",
    )
    job = queue(cluster)[training]
    seize(job)
    return job


def freeze(cluster: Cluster, job: str) -> None:
    """Stops a job's processes: Slurm takes it for running, but it gets no further."""
    cluster.run(f"scancel --signal=STOP --full {job}")


def arrays(cluster: Cluster, training: str) -> dict[str, Any]:
    """All numbers of a finished training's newest checkpoint, and their checksums."""
    step = last_checkpoint_step(cluster, training)
    folder = state(cluster, training) / f"checkpoints/{step}/default"
    with warnings.catch_warnings():  # Orbax misses the shardings, which it does not need
        warnings.simplefilter("ignore")
        tree = ocp.StandardCheckpointer().restore(folder)
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def test_disturbed_training_comes_to_the_same(cluster: Cluster, alice: Checkout) -> None:
    """One training is never disturbed. The other one loses its program, then its node, then time
    (it is frozen, and Slurm ends it at its limit): each time its next job resumes."""
    config = alice.configure("disturbed", {"train": {"undisturbed": LONG, "disturbed": LONG}})

    def node_of(job: str) -> str:
        return cluster.run(f"squeue -h -j {job} -o %N").stdout.strip()

    def kill_program(job: str) -> None:
        time.sleep(random.uniform(0, 0.2))  # whatever it is doing then
        line = "pkill -KILL -f '[t]rain.py .*train/disturbed/state'"
        cluster.run(line, node=node_of(job), user="root")

    def kill_node(job: str) -> None:
        cluster.control("kill-node", node_of(job))

    def take_time(job: str) -> None:
        freeze(cluster, job)
        cluster.run(f"scontrol update jobid={job} timelimit=1", user="root")

    with alice.start(config, "train") as snakemake:
        after, ended = 0, []
        for fault in (kill_program, kill_node, take_time):
            job = catch(cluster, "disturbed", fault, after)
            cluster.wait_for(
                lambda job=job: queue(cluster).get("disturbed") not in (None, job),
                timeout=240,
                what=f"the job after {job}",
            )
            ended.append(job)
            after = last_checkpoint_step(cluster, "disturbed")
            for node in cluster.compute:
                if not cluster.is_up(node):
                    cluster.control("start-node", node)
        code, output = snakemake.wait(400)
    assert code == 0, output
    query = f"sacct --noheader --allocations --duplicates --jobs={','.join(ended)} --format=state"
    assert cluster.run(query).stdout.split() == ["FAILED", "NODE_FAIL", "TIMEOUT"]
    summary, disturbed = (result(alice, f"train/{x}/summary") for x in ("undisturbed", "disturbed"))
    jobs = [segment["provenance"]["job"] for segment in disturbed["segments"]]
    assert len(set(jobs)) == len(jobs) == 4
    assert summary["validation_bits_per_byte"] == disturbed["validation_bits_per_byte"]
    assert len(losses(alice, "disturbed")) == LONG["steps"]
    assert losses(alice, "disturbed") == losses(alice, "undisturbed")
    one, other = (arrays(cluster, name) for name in ("undisturbed", "disturbed"))
    assert one.keys() == other.keys()
    assert len(one) > 20
    for name, numbers in one.items():
        np.testing.assert_array_equal(numbers, other[name], err_msg=name)


def test_cancelled_training_goes_on_with_more_nodes(cluster: Cluster, alice: Checkout) -> None:
    """It does not go on by itself. Accounting is down when it does, and the controller restarts
    under the running job."""
    options = LONG | {"schedule_steps": LONG["steps"]}
    config = alice.configure("cancelled", {"train": {"cancelled": options}})
    with alice.start(config, "train") as snakemake:
        catch(cluster, "cancelled", lambda job: cluster.run(f"scancel {job}"))
        code, output = snakemake.wait(60)
    assert code == 1, output
    assert "Training cancelled stopped: its job was cancelled" in output
    cluster.wait_for(lambda: not queue(cluster), what="the end of what it saves")
    cluster.control("stop", "slurmdbd")
    steps = min(last_checkpoint_step(cluster, "cancelled") + 300, LONG["steps"])
    options |= {"nodes": 2, "steps": steps}
    config = alice.configure("cancelled", {"train": {"cancelled": options}})
    with alice.start(config, "train") as snakemake:
        # It has begun: Slurm loses a job that it is only just handing to its node.
        cluster.wait_for(
            lambda: not snakemake.running or len(read_segments(state(cluster, "cancelled"))) == 2,
            timeout=180,
            what="the resumed training",
        )
        assert snakemake.running, snakemake.output()
        (job,) = queue(cluster).values()
        freeze(cluster, job)
        cluster.control("stop", "slurmctld")
        cluster.control("start", "slurmctld")
        cluster.run(f"scancel --signal=CONT --full {job}")
        code, output = snakemake.wait(300)
    assert code == 0, output
    first, second = result(alice, "train/cancelled/summary")["segments"]
    assert second["last_step"] == steps
    assert second["first_step"] == first["last_step"] + 1 > 1
    assert first["provenance"]["nodes"] in cluster.compute
    assert second["provenance"]["nodes"] == "jrc[0101-0102]"
    # Two nodes add up in another order, which makes ever more of a difference.
    soon = slice(0, second["first_step"] + 50)
    assert losses(alice, "cancelled")[soon] == pytest.approx(
        losses(alice, "undisturbed")[soon], rel=1e-3
    )


# ---------------------------------------------------------------------------- the terminal is lost


def test_training_of_a_lost_run_is_taken_over(cluster: Cluster, alice: Checkout) -> None:
    """Its job keeps running, and no other one on any node can write its state."""
    config = alice.configure("lost", {"train": {"lost": SLOW}})
    with alice.start(config, "train") as snakemake:
        job = catch(cluster, "lost", lambda job: freeze(cluster, job))
        snakemake.signal("HUP")
        assert snakemake.wait(30)[0]
    lock = f"{SCRATCH}/alice/jaxway/train/{state(cluster, 'lost').name}/lock"
    for node in cluster.compute:
        tried = cluster.run(["flock", "--nonblock", lock, "true"], node=node, check=False)
        assert tried.returncode == 1
    with alice.start(config, "train") as snakemake:
        cluster.wait_for(
            lambda: f"Took over job {job} " in snakemake.output(), what="the take-over"
        )
        assert queue(cluster) == {"lost": job}
        cluster.run(f"scancel --signal=CONT --full {job}")
        code, output = snakemake.wait(180)
    assert code == 0, output
    summary = result(alice, "train/lost/summary")
    assert [segment["provenance"]["job"] for segment in summary["segments"]] == [job]


# ------------------------------------------------------------------------------------- two users


def test_two_users_side_by_side(cluster: Cluster, alice: Checkout) -> None:
    """Alice runs her smoke test again, and Bob his first; he uses the image that she pulled."""
    bob = Checkout(cluster, "bob")
    pulled = cluster.path(SIF).stat().st_mtime_ns
    config = bob.configure("chain", {"train": {"one_node": SMALL}})
    before = result(alice, "smoke_test")["provenance"]["job"]
    again = ("smoke_test", "--forcerun", "smoke_test")
    with bob.start(config) as his, alice.start("chain.yaml", *again) as hers:
        cluster.wait_for(lambda: queue(cluster) and queue(cluster, "bob"), what="jobs of both")
        assert hers.wait(180)[0] == 0, hers.output()
        assert his.wait(300)[0] == 0, his.output()
    assert cluster.path(SIF).stat().st_mtime_ns == pulled
    assert result(alice, "smoke_test")["provenance"]["job"] != before
    trained = [result(x, "train/one_node/summary")["provenance"] for x in (alice, bob)]
    assert trained[0]["container"] == trained[1]["container"]
    assert "/bob/" in trained[1]["arguments"]["states"]
    # A smoke test run by itself makes no training and no benchmark stale.
    output = alice.run("chain.yaml", "--dry-run", timeout=60)
    assert "report" in output
    assert "train_run" not in output
    assert "benchmark_run" not in output
