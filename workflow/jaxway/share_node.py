"""Run jobs side by side on one node, each on its part of the GPUs and cores.

A job of Slurm that trainings share runs this (jaxway/slurm/sharing.py). One that fails stops no
other.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


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


def start(
    command: str, log: str, gpus: Sequence[str], cores: Sequence[list[int]]
) -> subprocess.Popen[bytes]:
    """Start a job by a shell. Without a core of its own it may use all."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [thread for core in cores for thread in core] or every)
    try:
        with open(log.replace("%j", os.environ.get("SLURM_JOB_ID", "")), "a") as file:
            return subprocess.Popen(
                ["sh", "-c", command],
                env=os.environ | {"JAXWAY_GPUS": ",".join(gpus)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
    finally:
        os.sched_setaffinity(0, every)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--parts", type=int, required=True, help="jobs for which the node is split")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of all parts together")
    parser.add_argument("--logs", nargs="+", required=True, help="where each job's output goes")
    parser.add_argument("--commands", nargs="+", required=True, help="each job's, for a shell")


def run(args: argparse.Namespace) -> None:
    """Run all jobs to their ends. Exit code 1 if one of them failed."""
    # Slurm sends this to all processes of a job: the others need time for what they do then.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    gpus = split(allocated_gpus(args.gpus, os.environ), args.parts)
    cores = split(allowed_cores(), args.parts)
    jobs = zip(args.commands, args.logs, gpus, cores, strict=False)  # there may be fewer jobs
    started = [start(*job) for job in jobs]
    if any([process.wait() for process in started]):
        sys.exit(1)
