"""The folder of a run: its jobs in the queue, their logs, the states of trainings."""

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

from examples import make_config, make_site
from jaxway.monitor.slurm_queue import Queue
from jaxway.monitor.status import job_statuses, status_lines

SITE = make_site()
LOCAL = make_site(launcher=None)
CONFIG = make_config(
    train={
        "gpt": {"program": "maxtext", "steps": 10000},
        "own": {"program": "command", "command": "x"},
    }
)
METRICS = {"step": 1200, "loss": 1.9312, "tokens_per_second": 152_345.6, "step_seconds": 0.28}
PROGRESS = "step 1200 of 10000, loss 1.93, 152k tokens/s, 41 min left"  # by METRICS

# Lists what lies in the files, and writes down what it was asked, and when.
SQUEUE = """#!/bin/sh
echo "$(date +%s.%N) $*" >> {folder}/asked
[ ! -e {folder}/fails ] || {{ cat {folder}/fails >&2; exit 1; }}
case "$*" in *--states=PENDING*) cat {folder}/pending ;; *) cat {folder}/queue ;; esac
"""


def make_squeue(folder: Path) -> None:
    """A squeue that lists what submit() has left."""
    (folder / "bin").mkdir()
    stub = folder / "bin/squeue"
    stub.write_text(SQUEUE.format(folder=shlex.quote(str(folder))))
    stub.chmod(0o755)
    for name in ("queue", "pending"):
        (folder / name).touch()


def submit(**fields: str) -> None:
    """Leave a job in the queue: a training that runs, but for these fields."""
    job = {
        **{"id": "17", "state": "RUNNING", "comment": "rule_train_run_wildcards_gpt"},
        **{"partition": "dc-gpu", "elapsed": "41:10", "time_left": "23:18:50"},
        **{"start": "2026-11-23T12:00:00", "nodes": "jrc0101", "reason": "None"},
        "folder": os.getcwd(),
    }
    with open("queue", "a") as queue:
        queue.write("|".join({**job, **fields}.values()) + "\n")


def train(
    *lines: str | dict[str, Any],
    name: str = "gpt",
    owner: str = "host jrc0101, process 1, job 17",
) -> Path:
    """Leave the state of a training that this process writes, with these metrics."""
    state = Path(f"scratch/train/{name}-0123abcd")
    state.mkdir(parents=True, exist_ok=True)
    (state / "lock").write_text(owner)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (state / "metrics.jsonl").write_text(text)
    return state


def log(name: str, text: str, seconds_ago: float = 0.0) -> None:
    """Leave a log."""
    file = Path("logs", name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - seconds_ago,) * 2)


def shown(site: Any = SITE) -> dict[str, str]:
    """What is shown now, by label."""
    queue = Queue(site, interval_s=0, with_positions=True)
    queue.refresh()
    if queue.pending():
        queue.refresh_positions()
    return dict(status_lines(job_statuses(CONFIG, site, queue), queue))
