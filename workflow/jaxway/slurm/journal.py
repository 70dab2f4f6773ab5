"""The record of what was submitted from a folder, by which a killed run's jobs are found again.

A line is written before sbatch is called, with the name that makes the job unique in Slurm; others
when its id is known and when Snakemake has taken note of its end. A job without that last line is
open: the next run asks Slurm for its name. Accounting reads here which jobs there were.
"""

import contextlib
import dataclasses
import json
import math
import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError

SCHEMA_VERSION = 1
NOT_STARTED = "NOT STARTED"  # end of a job that shared one of Slurm, and had not had its turn
JOURNAL = Path(".snakemake/jaxway/jobs.jsonl")
RUN_ID = uuid.uuid4().hex[:8]  # names this process's run


@dataclass(frozen=True)
class Submission:
    """A job that was submitted, or was about to be."""

    name: str  # no other submission of this folder has it; Slurm's name of the job
    label: str  # rule and wildcards: train_run small
    work: str  # hash of what the job does
    outputs: tuple[str, ...]
    log: str  # that Slurm writes; %j stands for the id
    run: str  # the last run that waited for it
    begun: float = math.inf  # seconds since 1970 when it was about to be submitted; inf, not known
    number: int = 1  # of this training's jobs in a row, from 1
    state_folder: str = ""  # of the training, before this job
    step_before: int = 0  # last checkpoint before this job
    shared_job: str = ""  # Slurm's name of the job, if it has others beside this one
    id: str = ""  # Slurm's; empty, not known
    cancelled: bool = False  # by us
    end: str = ""  # Slurm's state at the end; empty while open

    @property
    def slurm_name(self) -> str:
        return self.shared_job or self.name

    @property
    def log_file(self) -> str:
        return self.log.replace("%j", self.id)

    def was_started(self) -> bool:
        """Whether the job that it shares has come to it: its log appears then."""
        return not self.shared_job or os.path.exists(self.log_file)

    def has_succeeded(self) -> bool:
        """Whether all outputs were written after it was submitted: no job leaves some and fails."""
        try:
            return all(os.path.getmtime(file) > self.begun for file in self.outputs)
        except OSError:
            return False

    def __str__(self) -> str:
        return f"{self.id or self.name} ({self.label})"


class Journal:
    """The record in a file. Each event is one line; one that a kill has torn counts as none."""

    def __init__(self, path: Path = JOURNAL) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, Submission]:
        """All submissions by name, oldest first. UserError where the file is of another version."""
        submissions: dict[str, Submission] = {}
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return submissions
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # torn
                continue
            name = event["name"]
            if "work" not in event:
                if name in submissions:  # else its first line is torn
                    submissions[name] = dataclasses.replace(submissions[name], **event)
            elif event.pop("schema_version", None) == SCHEMA_VERSION:
                submissions[name] = Submission(**event | {"outputs": tuple(event["outputs"])})
            else:
                raise UserError("JW001", f"{self._path} is of another version: delete it")
        return submissions

    def open_submissions(self) -> dict[str, Submission]:
        """Those whose end Snakemake has not taken note of."""
        return {name: each for name, each in self.read().items() if not each.end}

    def begin(self, submission: Submission) -> None:
        """About to be submitted."""
        self._append({"schema_version": SCHEMA_VERSION} | dataclasses.asdict(submission))

    def update(self, submission: Submission, **fields: str | bool) -> Submission:
        """Record new values of a submission's fields; the submission with them.

        A full disk loses the record alone: the next run asks Slurm for the job's name.
        """
        with contextlib.suppress(OSError):
            self._append({"name": submission.name} | fields)
        values: Any = fields
        return dataclasses.replace(submission, **values)

    def _append(self, event: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(event).encode() + b"\n"
        with self._lock, self._path.open("ab+") as file:  # buffered, so it writes all or raises
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # torn by a kill
                    line = b"\n" + line
            file.write(line)
