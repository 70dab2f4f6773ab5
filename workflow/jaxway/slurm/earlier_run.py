"""Jobs that a killed run has left, and which of them this run waits for."""

import os
import threading
from collections.abc import Collection

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway.slurm.cancellation import cancel
from jaxway.slurm.journal import RUN_ID, Journal, Submission
from jaxway.slurm.outage import PatientQueue, report
from jaxway.slurm.queue import ACTIVE
from jaxway.slurm.submission import wait_for_calls
from jaxway.slurm.work import work_of

POLL_INTERVAL_S = 1  # of a job whose end is waited for
LOST = "LOST"  # a state of ours: Slurm does not know the job any more


class EarlierRun:
    """The open jobs of the journal."""

    def __init__(self, journal: Journal, queue: PatientQueue, closing: threading.Event) -> None:
        self._journal, self._queue, self._closing = journal, queue, closing
        self._jobs: list[Submission] = []
        self._states: dict[str, str] = {}  # by name

    def find(self, outputs: Collection[str]) -> None:
        """Ask Slurm for them. Only those that make one of these outputs matter."""
        if not (left := self._journal.open_submissions()):
            return
        wait_for_calls()
        found = self._queue.find_jobs(left)
        others = []
        for name, each in left.items():
            job = found.get(name)
            if not job:
                self._journal.update(each, end="NOT SUBMITTED")
                continue
            each = each if each.id else self._journal.update(each, id=job.id)
            self._states[name] = job.state
            if not set(each.outputs).isdisjoint(outputs):
                self._jobs.append(each)
            elif job.active:
                others.append(str(each))
            else:
                self._journal.update(each, end=job.state)
        if others:
            report(f"Jobs of an earlier run that this one does not need: {', '.join(others)}.")

    def take_over(self, job: Job) -> Submission | None:
        """The one that does the same as a job of this run, if it still runs or has succeeded.

        One with other settings would write the same files: its end is waited for.
        """
        outputs, work = set(map(str, job.output)), work_of(job)
        for each in [x for x in [*self._jobs] if not outputs.isdisjoint(x.outputs)]:
            state = self._states[each.name]
            if each.cancelled and state in ACTIVE:
                cancel([each], self._queue)  # the run that did it may have been killed before
                state = self._end_of(each)
            elif each.work != work and state in ACTIVE:
                report(
                    f"Job {each} of an earlier run with other settings has not ended: waiting for "
                    f"it (`scancel {each.id}` ends it)."
                )
                state = self._end_of(each)
            self._jobs.remove(each)
            complete = state == "COMPLETED" and all(map(os.path.exists, outputs))
            if each.work == work and (complete or state in ACTIVE):
                report(f"Took over job {each} of an earlier run: {state}.")
                return self._journal.update(each, run=RUN_ID)
            report(f"Job {each} of an earlier run: {state}. It is submitted again.")
            self._journal.update(each, end=state)
        return None

    def _end_of(self, earlier: Submission) -> str:
        """State of a job when it has ended."""
        while True:
            job = self._queue.find_jobs([earlier.name]).get(earlier.name)
            if not job or not job.active:
                return job.state if job else LOST
            self._closing.wait(POLL_INTERVAL_S)
