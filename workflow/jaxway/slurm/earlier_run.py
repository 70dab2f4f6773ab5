"""Jobs that a killed run has left, and which of them this run waits for."""

import os
import threading
import time
from collections.abc import Collection

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway.slurm.cancellation import cancel
from jaxway.slurm.journal import NOT_STARTED, RUN_ID, Journal, Submission
from jaxway.slurm.outage import PatientQueue, report
from jaxway.slurm.queue import ENDED, LOST, LOST_AFTER_S
from jaxway.slurm.submission import wait_for_calls
from jaxway.slurm.work import work_of

POLL_INTERVAL_S = 1


class EarlierRun:
    """The open jobs of the journal."""

    def __init__(
        self, journal: Journal, queue: PatientQueue, closing: threading.Event, latency_wait: float
    ) -> None:
        self._journal, self._queue, self._closing = journal, queue, closing
        self._latency_wait = latency_wait  # seconds: Snakemake's, until files are seen
        self._jobs: list[Submission] = []
        self._states: dict[str, str] = {}  # by name

    def find(self, outputs: Collection[str]) -> None:
        """Ask Slurm for them. Only those that make one of these outputs matter."""
        if not (left := self._journal.open_submissions()):
            return
        wait_for_calls(self._closing)
        found = self._queue.find_jobs({each.slurm_name for each in left.values()})
        others = []
        for name, each in left.items():
            job = found.get(each.slurm_name)
            if job and not each.id:
                each = self._journal.update(each, id=job.id)
            self._states[name] = state = job.state if job else LOST if each.id else "NOT SUBMITTED"
            if each.id and not set(each.outputs).isdisjoint(outputs):
                self._jobs.append(each)
            elif job and state not in ENDED:
                others.append(str(each))
            else:
                self._journal.update(each, end=state)
        if others:
            report(f"Jobs of an earlier run that this one does not need: {', '.join(others)}.")

    def take_over(self, job: Job) -> tuple[Submission | None, str, list[str]]:
        """The one that does the same as a job of this run, if it still runs or has succeeded, and
        its state.

        Where there is none, the ids of those after whose end the job may begin: they would write
        the same files, with other settings or although they were cancelled.
        """
        outputs, work = set(map(str, job.output)), work_of(job)
        after: list[str] = []
        # The last one writes last, so it decides. A copy: other threads remove theirs meanwhile.
        for each in [x for x in self._jobs[::-1] if not outputs.isdisjoint(x.outputs)]:
            self._jobs.remove(each)
            state = self._state_of(each)
            same = each.work == work and not after
            unknown = state == LOST or (each.shared_job and state in ENDED)
            if same and unknown and each.has_succeeded():
                state = "COMPLETED"  # long ago, so that Slurm has forgotten it; or beside others
            if same and state == "COMPLETED" and self._appear(outputs):
                return self._taken_over(each, state), state, []
            if state in ENDED:
                report(f"Job {each} of an earlier run: {state}. It is submitted again.")
                self._journal.update(each, end=state if each.was_started() else NOT_STARTED)
            elif same and not each.cancelled:
                return self._taken_over(each, state), state, []
            else:
                if each.cancelled:
                    cancel([each], self._queue)  # the run that did it may have been killed before
                report(
                    f"Job {each} of an earlier run with other settings or cancelled has not ended: "
                    f"the new one begins after it (`scancel {each.id}` ends it)."
                )
                after.append(each.id)
        return None, "", after

    def _taken_over(self, earlier: Submission, state: str) -> Submission:
        report(f"Took over job {earlier} of an earlier run: {state}.")
        return self._journal.update(earlier, run=RUN_ID)

    def _state_of(self, earlier: Submission) -> str:
        """Its state now; hours may have passed since find()."""
        state, began = self._states[earlier.name], time.monotonic()
        while state not in ENDED:
            if job := self._queue.find_jobs([earlier.slurm_name]).get(earlier.slurm_name):
                return job.state
            if time.monotonic() - began > LOST_AFTER_S:
                return LOST
            self._closing.wait(POLL_INTERVAL_S)
        return state

    def _appear(self, files: Collection[str]) -> bool:
        """Whether these files are there; a parallel file system shows them late."""
        deadline = time.monotonic() + self._latency_wait
        while not all(map(os.path.exists, files)):
            if time.monotonic() > deadline or self._closing.wait(POLL_INTERVAL_S):
                return False
        return True
