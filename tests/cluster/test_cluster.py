"""The test cluster itself: what it claims to be, what it does under faults, and that it ends."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from nodes import COMMAND, IMAGE, UNSUITABLE, Checkout, Cluster

MANUAL = "/p/scratch/training/manual"  # the $SCRATCH of who follows the seed by hand
SEEDS_PULL = (
    f"export SCRATCH={MANUAL} PATH={MANUAL}/bin:$PATH; mkdir -p $SCRATCH/jureca_containers; "
    "TMPDIR=$SCRATCH/jureca_containers "
    f"apptainer pull --force $SCRATCH/jureca_containers/jax.sif {IMAGE}"
)
ADD_RANKS = """
import os, socket
import jax, optax, orbax.checkpoint
jax.config.update("jax_cpu_collectives_implementation", "gloo")
size, rank = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"])
jax.distributed.initialize(os.environ["COORDINATOR"], size, rank)
from jax.experimental.multihost_utils import process_allgather
total = process_allgather(jax.numpy.array([rank + 1])).sum()
print(jax.__version__, socket.gethostname(), jax.device_count(), total)
"""


def states(cluster: Cluster) -> set[str]:
    return set(cluster.run("sinfo --noheader --Node --format=%N=%T").stdout.split())


def job_state(cluster: Cluster, job: str) -> str:
    return cluster.run(f"squeue --noheader --states=all --jobs={job} --format=%T").stdout.strip()


def submit(cluster: Cluster, command: str, *options: str) -> str:
    """Submits a job and waits until it runs; its id."""
    line = ["sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", command]
    job = cluster.run(line).stdout.strip()
    cluster.wait_for(lambda: job_state(cluster, job) == "RUNNING", what=f"start of job {job}")
    return job


# ------------------------------------------------------------------------------------- the nodes


def test_nodes_are_apart(cluster: Cluster) -> None:
    nodes = (cluster.login, *cluster.compute)
    assert [cluster.run("hostname", node=n).stdout.strip() for n in nodes] == list(nodes)
    for kind in ("net", "pid", "mnt", "uts", "ipc"):
        seen = {cluster.run(["readlink", f"/proc/self/ns/{kind}"], node=n).stdout for n in nodes}
        assert len(seen | {os.readlink(f"/proc/self/ns/{kind}")}) == 4
    # Only the way to each other: no route out, and JURECA's InfiniBand names work.
    assert cluster.run("ip route", node="jrc0101").stdout.startswith("10.99.0.0/16 dev ib0")
    assert "default" not in cluster.run("ip route").stdout
    assert cluster.run("getent hosts jrc0102i", node="jrc0101").returncode == 0


def test_login_environment(cluster: Cluster) -> None:
    result = cluster.run("echo $USER $SYSTEMNAME $(cat /etc/FZJ/systemname) $SCRATCH $PROJECT; pwd")
    scratch, project = "/p/scratch/training", "/p/project1/training"
    assert result.stdout.split()[:5] == ["alice", "jurecadc", "jurecadc", scratch, project]
    assert result.stdout.split()[5] == "/p/home/jusers/alice/jureca"
    line = ["env", "-u", "SCRATCH", "A=b c", "bash", "-c", 'echo "$A${SCRATCH-unset}"; exit 7']
    done = cluster.run(line, check=False)
    assert (done.returncode, done.stdout) == (7, "b cunset\n")
    assert cluster.run(["cat"], node="jrc0102", input="through").stdout == "through"
    assert cluster.run("snakemake --version").stdout.startswith("9.")


def test_scratch_is_shared(cluster: Cluster) -> None:
    cluster.run("umask 027; echo mine > $SCRATCH/shared.txt", node="jrc0101")
    assert cluster.run("cat $SCRATCH/shared.txt", node="jrc0102", user="bob").stdout == "mine\n"
    assert cluster.path("/p/scratch/training/shared.txt").read_text() == "mine\n"
    cluster.run("rm $SCRATCH/shared.txt")


def test_job_on_both_nodes_has_gpus(cluster: Cluster) -> None:
    line = "srun -N2 --ntasks-per-node=4 -c2 --gres=gpu:4 -p dc-gpu-devel -t 5 bash -c "
    done = cluster.run(line + "'echo $(hostname) $CUDA_VISIBLE_DEVICES $(nproc)'")
    assert sorted(x.split()[:2] for x in done.stdout.splitlines()) == sorted(
        [node, "0,1,2,3"] for node in cluster.compute for _ in range(4)
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-A forbidden", "Invalid account or account/partition combination specified"),
        ("-p dc-closed", "Required partition not available (inactive or drain)"),
        ("-p dc-gpu-devel -t 2:01:00", "Requested time limit is invalid"),
        ("-p dc-gpu -t 24:01:00", "Requested time limit is invalid"),
        ("-N 3", "Node count specification invalid"),
        ("--gres=gpu:5", "Requested node configuration is not available"),
    ],
)
def test_wrong_request_is_refused_with_the_reason(
    cluster: Cluster, options: str, reason: str
) -> None:
    done = cluster.run(f"sbatch {options} --wrap hostname", check=False, timeout=10)
    assert done.returncode == 1
    assert reason in done.stderr


# --------------------------------------------------------------------------------- the containers


@pytest.fixture(scope="module")
def seeds_sif(cluster: Cluster) -> str:
    # Apptainer compresses as well as gzip can, which would take a minute on two idle cores.
    quick, script = f"{MANUAL}/bin/mksquashfs", 'exec mksquashfs "$@" -Xcompression-level 1\n'
    script = f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}"
    cluster.run(f"mkdir -p {MANUAL}/bin; cat > {quick}; chmod +x {quick}", input=script)
    cluster.run(SEEDS_PULL, timeout=400)
    return f"{MANUAL}/jureca_containers/jax.sif"


def test_seeds_pull_fails_on_a_compute_node(cluster: Cluster) -> None:
    done = cluster.run(SEEDS_PULL.replace("jax.sif", "no.sif"), node="jrc0101", check=False)
    assert done.returncode
    assert "lookup nvcr.io" in done.stderr
    assert not cluster.path(f"{MANUAL}/jureca_containers/no.sif").exists()
    assert cluster.run("curl -m 5 https://192.0.2.1", node="jrc0101", check=False).returncode == 7


def test_jax_processes_on_two_nodes_add_up(cluster: Cluster, seeds_sif: str) -> None:
    script = "/p/scratch/training/add_ranks.py"
    cluster.path(script).write_text(ADD_RANKS)
    done = cluster.run(
        f"COORDINATOR=jrc0101i:12345 srun -N2 -n2 --gres=gpu:4 -t 5 "
        f"apptainer exec --nv --bind $SCRATCH {seeds_sif} python3 {script}"
    )
    sums = [x for x in done.stdout.splitlines() if not x.startswith("[Gloo]")]
    assert sorted(sums) == [f"0.4.33 {node} 2 3" for node in cluster.compute]


def test_container_of_the_manual_way_is_taken_as_it_is(cluster: Cluster, seeds_sif: str) -> None:
    """Apptainer's labels say which image it is. It still works where it was."""
    checkout = Checkout(cluster, name="manual")
    with checkout.start(checkout.configure("plain", {}), "smoke_test", SCRATCH=MANUAL) as snakemake:
        code, output = snakemake.wait(300)
    assert code == 0, output
    assert "was a file: now it is a link to jax-24.10-maxtext-py3-" in output
    found = json.loads(checkout.path("results/smoke_test.json").read_text())["provenance"]
    assert (found["container"]["image"], found["container"]["digest"]) == (IMAGE, None)
    assert len([*cluster.path(seeds_sif).parent.glob("jax-*.sif")]) == 1
    cluster.run(f"apptainer exec {seeds_sif} true")


# ------------------------------------------------------------------------------------- the faults


@pytest.mark.usefixtures("repaired")
def test_dead_node_fails_its_job_and_comes_back(cluster: Cluster) -> None:
    job = submit(cluster, "sleep 600", "-w", "jrc0102")
    cluster.control("kill-node", "jrc0102")
    cluster.wait_for(lambda: job_state(cluster, job) == "NODE_FAIL", what="NODE_FAIL")
    assert not cluster.is_up("jrc0102")
    cluster.control("start-node", "jrc0102")
    done = cluster.run("srun --immediate=60 -w jrc0102 hostname")
    assert done.stdout == "jrc0102\n"


@pytest.mark.usefixtures("repaired")
def test_job_survives_restarted_controller(cluster: Cluster) -> None:
    job = submit(cluster, "sleep 600")
    cluster.control("stop", "slurmctld")
    assert cluster.run("squeue", check=False, timeout=60).returncode
    cluster.control("start", "slurmctld")
    assert job_state(cluster, job) == "RUNNING"


@pytest.mark.usefixtures("repaired")
def test_accounting_can_be_down(cluster: Cluster) -> None:
    cluster.control("stop", "slurmdbd")
    assert cluster.run("sacct", check=False).returncode
    job = submit(cluster, "true; sleep 2")
    cluster.wait_for(lambda: job_state(cluster, job) == "COMPLETED", what=f"end of job {job}")
    cluster.control("start", "slurmdbd")
    # The controller hands in later what it had to keep.
    query = f"sacct --noheader --allocations --jobs={job} --format=state"
    cluster.wait_for(lambda: cluster.run(query).stdout.strip() == "COMPLETED", what="accounting")


# ------------------------------------------------------------------------------- start and the end


def remains(run: Path) -> list[str]:
    """What a cluster in folder `run` left on this machine."""
    found = [str(run)] if run.exists() and any(run.iterdir()) else []
    found += [x for x in Path("/proc/self/mounts").read_text().splitlines() if str(run) in x]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it ended meanwhile
    interfaces = os.listdir("/sys/class/net")
    return found + [x for x in interfaces if x.startswith(("bridge", "jrc", "jrlogin"))]


def namespaces(processes: Iterable[Path], run: str = "") -> set[str]:
    """Process, network and mount namespaces in use, by those of the processes that have `run` in
    their environment."""
    used: set[str] = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if run.encode() in (process / "environ").read_bytes():
                used |= {os.readlink(process / "ns" / kind) for kind in ("pid", "net", "mnt")}
    return used


@pytest.fixture
def second(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a second cluster beside the first, which shows that one can run here."""
    environment = {**os.environ, "JAXWAY_CLUSTER_RUN": str(tmp_path / "run")}
    yield environment
    subprocess.run([COMMAND, "down"], env=environment, check=True)


def test_nothing_is_left_after_down(second: dict[str, str]) -> None:
    run = Path(second["JAXWAY_CLUSTER_RUN"])
    subprocess.run([COMMAND, "up"], env=second, check=True)
    again = subprocess.run([COMMAND, "up"], env=second, check=True, capture_output=True, text=True)
    assert "is up already" in again.stderr
    # A process that starts later may get a namespace with the number of one that is gone.
    processes = [*Path("/proc").glob("[0-9]*")]
    started = namespaces(processes, str(run)) - namespaces([Path("/proc/self")])
    assert len(started) >= 12  # rack and three nodes, three kinds each
    subprocess.run([COMMAND, "down"], env=second, check=True)
    assert remains(run) == []
    assert not started & namespaces(processes)


def test_failed_start_cleans_up(second: dict[str, str]) -> None:
    hurry = {**second, "JAXWAY_CLUSTER_TIMEOUT": "0.2"}  # no daemon is that quick on every node
    done = subprocess.run([COMMAND, "up"], env=hurry, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not within 0.2 s" in done.stderr
    assert remains(Path(second["JAXWAY_CLUSTER_RUN"])) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_interrupted_start_cleans_up(
    cluster: Cluster, second: dict[str, str], number: signal.Signals
) -> None:
    run = Path(second["JAXWAY_CLUSTER_RUN"])
    with subprocess.Popen([COMMAND, "up"], env=second, stderr=subprocess.PIPE) as up:
        log = run / "nodes/jrlogin01/upper/var/log/munge/munged.log"
        cluster.wait_for(log.exists, what="the login node")
        up.send_signal(number)
        up.communicate()
    assert up.returncode
    if number == signal.SIGKILL:
        assert remains(run)  # nobody was there to clean up
        subprocess.run([COMMAND, "down"], env=second, check=True)
    assert remains(run) == []


def test_killed_build_ends(cluster: Cluster, second: dict[str, str], tmp_path: Path) -> None:
    cold = {**second, "XDG_CACHE_HOME": str(tmp_path)}
    cache = tmp_path / "jaxway-cluster"
    with subprocess.Popen([COMMAND, "up"], env=cold, stderr=subprocess.PIPE, text=True) as up:
        cluster.wait_for(lambda: up.poll() or len([*cache.glob("tmp-*/*")]) >= 2, 200, "a build")
        assert up.poll() is None, up.communicate()[1]
        up.kill()
    run = Path(second["JAXWAY_CLUSTER_RUN"])
    cluster.wait_for(lambda: not remains(run), what="the build's end")
    assert not [*cache.glob("node-*"), *cache.glob("registry-*"), *cache.glob("environment-*")]


def test_without_root_it_says_what_is_missing() -> None:
    become_nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    line = [*become_nobody, str(COMMAND), "up"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == UNSUITABLE
    assert done.stderr.startswith("cluster: the test cluster needs root")
    assert len(done.stderr.splitlines()) == 1
