"""Benchmarks on the cluster: failures, slow nodes, and a history that loses nothing."""

import fcntl
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import Checkout, Cluster

HISTORY = "/p/scratch/training/history"
QUICK = {"program": "compute", "dtypes": ["float32"], "shapes": ["512x512x512"], "repeats": 3}
QUICK |= {"gpus_per_node": 1}
FAILS = {"program": "train", "fsdp": 3, "gpus_per_node": 1}

pytestmark = pytest.mark.usefixtures("repaired")


@pytest.fixture(scope="module")
def store(cluster: Cluster) -> str:
    """A folder for a history that alice and bob share."""
    cluster.run(f"rm -rf {HISTORY}; mkdir -m 777 {HISTORY}", user="root")
    return HISTORY


@pytest.fixture(scope="module")
def alice(cluster: Cluster, pull: object) -> Checkout:
    """A checkout of her own, whose smoke test has passed."""
    checkout = Checkout(cluster, name="benchmarks")
    checkout.run(checkout.configure("none", {}), "smoke_test", timeout=400)
    return checkout


def history(checkout: Checkout, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of jaxway on the history, on the login node."""
    words = ["python", "workflow/jaxway", command, f"--store={HISTORY}", *arguments]
    line = f'cd {checkout.folder} && exec "$@"'
    return checkout.cluster.run(["bash", "-lc", line, "bash", *words], user=checkout.user)


def runs(checkout: Checkout) -> int:
    """Runs that the history knows."""
    query = "select 'runs: ' || count(distinct run) as runs from history"
    return int(re.findall(r"runs: (\d+)", history(checkout, "query", query).stdout)[0])


def test_failed_benchmark_does_not_stop_others(
    cluster: Cluster, alice: Checkout, store: str
) -> None:
    """The exit code is 1; the report and the result have the reason."""
    benchmarks = {"fails": FAILS | {"rounds": 2}, "fine": QUICK | {"rounds": 2}}
    config = alice.configure("fails", {"benchmark": benchmarks, "history": store})
    with alice.start(config) as snakemake:
        code, output = snakemake.wait(300)
    assert code == 1
    reason = r"it ended with exit code 1: benchmark_train\.py on jrc010[12]: fsdp 3"
    assert re.search(f"fails on 1x1: failed; {reason}", output)
    fails, fine = json.loads(alice.path("results/benchmark/1x1.json").read_text())["benchmarks"]
    assert "does not divide 1 devices" in fails["failed"]
    assert fine["failed"] is None
    assert [len(case["measurement"]["samples"]) for case in fine["cases"]] == [2]
    report = alice.path("results/report.html").read_text()
    assert "does not divide 1 devices" in report
    assert runs(alice) == 1


def test_concurrent_runs_lose_nothing(cluster: Cluster, alice: Checkout, store: str) -> None:
    """Two users, one history."""
    before = runs(alice)
    bob = Checkout(cluster, "bob", name="benchmarks")
    settings = {"benchmark": {"quick": QUICK | {"rounds": 1}}, "history": store}
    with (
        alice.start(alice.configure("quick", settings), "benchmark") as hers,
        bob.start(bob.configure("quick", settings), "benchmark") as his,
    ):
        assert hers.wait(300)[0] == 0, hers.output()
        assert his.wait(300)[0] == 0, his.output()
    assert runs(alice) == runs(bob) == before + 2


def test_killed_run_leaves_readable_history(cluster: Cluster, alice: Checkout, store: str) -> None:
    """Whatever it was doing: it is killed at six moments between its start and its end."""
    before = runs(alice)
    result = json.loads(alice.path("results/benchmark/1x1.json").read_text())
    add = f"cd {alice.folder} && python workflow/jaxway record --store={store} new.json"
    finished = 0
    for number in range(6):
        alice.cluster.run(
            f"cat > {alice.folder}/new.json", input=json.dumps(result | {"number": number})
        )
        seconds = random.uniform(0.2, 2.0)
        killed = cluster.run(f"timeout -s KILL {seconds} bash -lc '{add}'", check=False)
        finished += killed.returncode == 0
        assert before + finished <= runs(alice) <= before + number + 1
    history(alice, "record", "new.json")
    assert runs(alice) > before


# Whenever a program has computed for 10 ms it stands still for 19 times as long as it ran: it makes
# a twentieth of its speed, less than the busiest machine leaves to a healthy node. Not while it
# only imports: numpy has a thread a core, JAX's device has more.
THROTTLE = """
import contextlib, os, pathlib, signal, sys, time

def processes():
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = (process / "cmdline").read_bytes().split(b"\\0")
            if words[0].endswith(b"python3") and words[1].endswith(sys.argv[1].encode()):
                if len(os.listdir(process / "task")) > os.cpu_count():
                    yield int(process.name)

def computed(pid):
    user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)  # ticks of 10 ms, of all threads

with contextlib.suppress(PermissionError):
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))  # before the jobs, see before_others()
since = {}  # when a process was let go, and what it had computed by then
while True:
    time.sleep(0.01)
    for pid in processes():
        with contextlib.suppress(OSError):
            began, before = since.setdefault(pid, (time.monotonic(), computed(pid)))
            if computed(pid) > before:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(19 * (time.monotonic() - began))
                since[pid] = time.monotonic(), computed(pid)
                os.kill(pid, signal.SIGCONT)
"""


@contextmanager
def before_others(cluster: Cluster) -> Iterator[None]:
    """Jobs have priority over what else this machine computes, such as other tests: else healthy
    nodes differ by more than twice. Where that is forbidden, they have not. Of other clusters here
    none has it meanwhile. (Niceness counts only within a session, where Linux groups these.)"""

    def schedule(policy: str, priority: int) -> None:
        for node in cluster.compute:  # jobs take after slurmd
            line = f"chrt --all-tasks --{policy} --pid {priority} $(pgrep -x slurmd)"
            cluster.run(line, node=node, user="root", check=False)

    with Path(tempfile.gettempdir(), "jaxway-before-others.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        schedule("rr", 1)
        try:
            yield
        finally:
            schedule("other", 0)


@contextmanager
def throttled(cluster: Cluster, node: str) -> Iterator[None]:
    """Lets the benchmark on a node compute for a twentieth of the time."""
    program = "/benchmark_compute.py"
    process = subprocess.Popen(cluster.argv(["python3", "-c", THROTTLE, program], node, "root"))
    try:
        yield
    finally:
        process.kill()
        process.wait()
        cluster.run(["pkill", "-CONT", "-f", program], node, "root", check=False)


def test_slow_node_is_excluded(cluster: Cluster, alice: Checkout, store: str) -> None:
    """One job at a time: the nodes share this machine's cores."""
    # A sample takes several of THROTTLE's turns.
    long = {"shapes": ["1024x1024x1024"], "rounds": 2, "repeats": 5, "warmup": 1}
    settings = {
        "benchmark": {"quick": QUICK | long | {"timeout_minutes": 10}},
        "node_check": {"nodes": ["jrc[0101-0102]"]},
        "history": store + "/node_check",
    }
    config = alice.configure("node_check", settings)
    with before_others(cluster):
        output = alice.run(config, "node_check", "--jobs=1", timeout=300)
        assert "It takes 3 values to find a slow node, and here are 2" in output
        again = ("--jobs=1", "--forcerun", "benchmark_run")
        with throttled(cluster, "jrc0102"):
            output = alice.run(config, "node_check", *again, timeout=400)
    assert "exclude: [jrc0102]" in output
    found = json.loads(alice.path("results/node_check.json").read_text())
    assert found["nodes"]["jrc0101"] == []
    (problem,) = found["nodes"]["jrc0102"]
    assert problem["slower_by"] > 0.3


def test_drained_node_is_refused(cluster: Cluster, alice: Checkout) -> None:
    drain = "scontrol update nodename=jrc0102 reason=test state="
    settings = {"benchmark": {"quick": QUICK}, "node_check": {"nodes": ["jrc[0101-0103]"]}}
    cluster.run(drain + "drain", user="root")
    try:
        with alice.start(alice.configure("drained", settings), "node_check") as snakemake:
            code, output = snakemake.wait(60)
    finally:
        cluster.run(drain + "resume", user="root")
    assert code == 1
    assert "no job can start on jrc0102 (drained), jrc0103 (unknown)" in output
