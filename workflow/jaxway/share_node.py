"""Run jobs on one node, each on a part of its GPUs and cores; the next when one on a part ends.

A job of Slurm that trainings share runs this (jaxway/slurm/sharing.py). One that fails stops no
other, and none takes of another's time.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from jaxway_shared.errors import with_code

from jaxway.processes import KILL_WAIT_S, send, with_descendants

T = TypeVar("T")
POLL_INTERVAL_S = 0.5


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """As many contiguous parts, of equal sizes but for one item."""
    bounds = [i * len(items) // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def allocated_gpus(count: int, environ: Mapping[str, str]) -> list[str]:
    """The job's GPUs, as CUDA names them. Where Slurm does not say, it has the whole node."""
    named = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named if len(named) == count else [str(i) for i in range(count)]


def allowed_cores() -> list[list[int]]:
    """Hardware threads that this process may use, those of a core together."""
    cores: dict[str, list[int]] = {}
    for thread in sorted(os.sched_getaffinity(0)):
        try:
            file = f"/sys/devices/system/cpu/cpu{thread}/topology/thread_siblings_list"
            core = Path(file).read_text()
        except OSError:
            core = str(thread)
        cores.setdefault(core, []).append(thread)
    return [*cores.values()]


def wait(process: subprocess.Popen[bytes], end: float) -> int | None:
    """Exit code of a process; None, its time was over, and all that it has started was ended.

    As Slurm does it with a job, but SIGKILL comes when the time is over, not SIGTERM.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(end - KILL_WAIT_S - time.time())
    processes = with_descendants([process.pid])
    send(signal.SIGTERM, processes)
    # Of a shell that ends at once, the program may still save.
    while time.time() < end and any(os.path.exists(f"/proc/{each}") for each in processes):
        time.sleep(POLL_INTERVAL_S)
        process.poll()
    # By its group, too: one may have lost its parent, or have been started meanwhile.
    send(signal.SIGKILL, [*with_descendants(processes), -process.pid])
    process.wait()
    return None


def run_job(command: str, log: str, gpus: Sequence[str], minutes: float) -> bool:
    """Run a job by a shell, on the cores of this thread. Whether it has succeeded."""
    end = min(time.time() + 60 * minutes, float(os.environ.get("SLURM_JOB_END_TIME", "inf")))
    own = {"JAXWAY_GPUS": ",".join(gpus), "SLURM_JOB_END_TIME": f"{end:.0f}"}
    with open(log.replace("%j", os.environ.get("SLURM_JOB_ID", "")), "a") as file:
        process = subprocess.Popen(
            ["sh", "-c", command],
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # `kill 0` in one ends no other; kernels may share by sessions
        )
        code = wait(process, end)
        if code is None:
            file.write(with_code("JW205", f"ended: its {minutes:g} minutes were over") + "\n")
    return code == 0


def run_part(
    jobs: deque[tuple[str, str]], gpus: Sequence[str], cores: Sequence[list[int]], minutes: float
) -> list[bool]:
    """Run jobs on a part of the node while there are any; for each, whether it has succeeded."""
    if cores:  # else it may use all
        os.sched_setaffinity(0, [thread for core in cores for thread in core])  # of this thread
    succeeded: list[bool] = []
    while True:
        try:
            command, log = jobs.popleft()
        except IndexError:
            return succeeded
        succeeded.append(run_job(command, log, gpus, minutes))


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--parts", type=int, required=True, help="into which the node is split")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of all parts together")
    parser.add_argument("--minutes", type=float, required=True, help="time of each job")
    parser.add_argument("--logs", nargs="+", required=True, help="where each job's output goes")
    parser.add_argument("--commands", nargs="+", required=True, help="each job's, for a shell")


def run(args: argparse.Namespace) -> None:
    """Run all jobs to their ends. Exit code 1 if one of them failed, or was not started."""
    jobs = deque(zip(args.commands, args.logs, strict=True))
    # Slurm sends this to all processes of a job: those that run need time for what they do then.
    signal.signal(signal.SIGTERM, lambda number, frame: jobs.clear())
    gpus = split(allocated_gpus(args.gpus, os.environ), args.parts)
    cores = split(allowed_cores(), args.parts)
    with ThreadPoolExecutor(args.parts) as pool:
        parts = pool.map(run_part, [jobs] * args.parts, gpus, cores, [args.minutes] * args.parts)
        succeeded = [each for part in parts for each in part]
    if succeeded.count(True) < len(args.commands):
        sys.exit(1)
