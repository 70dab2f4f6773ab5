"""The Slurm executor: Snakemake's Slurm plugin, made to outlast an outage, a kill and a Ctrl-C.

Differences: the queue is asked often, and a query that fails is no answer; every submission is in a
journal before sbatch is called, so that Ctrl-C cancels all of them and the next run takes over what
a killed one has left; a training's next job is submitted without an error in between; and reasons
are sentences.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError, with_code
from snakemake.io import is_flagged
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway import interrupt, run_lock
from jaxway.slurm import queue, submission
from jaxway.slurm.commands import error_message, run_query
from jaxway.slurm.journal import RUN, Journal, Submission
from jaxway.slurm.queue import QueryError, SlurmJob
from jaxway.slurm.resubmission import Checkpoint, Resubmit, Training

POLL_SHARE = 0.1  # of the time since a job has last changed its state
MIN_POLL_S, MAX_POLL_S = 1, 15
RETRY_INTERVAL_S = 5  # after a query that failed
REPORT_INTERVAL_S = 60  # between two lines about a Slurm that does not answer
LOST_AFTER_S = 60  # an answering Slurm that does not list a job for so long has lost it
CANCEL_TIMEOUT_S = 60
SUBMISSION_THREADS = 4
MAX_HASHED_BYTES = 1 << 20  # of an input; larger ones are known by size and time
UNSAFE_RE = re.compile(r"[^\w.-]")  # in a job's name, which is an item of a list with commas
# The job's identity and its deadline.
KEPT_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_JOB_END_TIME")
LOST = "LOST"  # a state of ours: Slurm does not know the job any more


def report(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)


class Outage:
    """Says at most once a minute that Slurm does not answer."""

    def __init__(self) -> None:
        self._reported = float("-inf")

    def report(self, error: QueryError) -> None:
        if time.monotonic() - self._reported >= REPORT_INTERVAL_S:
            self._reported = time.monotonic()
            report(f"Slurm did not answer ({error}); asking again. Jobs are not affected.")


class Executor(SlurmExecutor):
    """What Snakemake calls: run_jobs() from its main thread, check_active_jobs() from another."""

    # Here, since that other thread runs before __post_init__() does.
    _changed = 0.0  # when a job has last changed its state
    _failed_query = False

    def __init__(self, workflow: Any, logger: Any) -> None:
        self._closing = threading.Event()  # no submission begins any more
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        try:
            self._run_lock = run_lock.acquire()
        except UserError as error:
            sys.exit(error.line())
        super().__post_init__(test_mode)
        interrupt.install()
        self._journal = Journal()
        self._outage = Outage()
        self._submitting = threading.Lock()  # held while a submission begins
        self._submissions: dict[str, Submission] = {}  # of this run, by name
        self._states: dict[str, str] = {}  # last seen, by name
        self._missing_since: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(SUBMISSION_THREADS, thread_name_prefix="submission")
        self._earlier = self._pool.submit(self._find_earlier)

    # ----------------------------------------------------------------------------- submission

    def run_jobs(self, jobs: list[Job]) -> None:
        for job in jobs:
            self.run_job_pre(job)
            self._pool.submit(self.run_job, job)

    def run_job(self, job: Job) -> None:
        """Wait for the job of an earlier run that does the same, or submit one."""
        with self._reporting(job):
            if earlier := self._take_over(job):
                self._wait_for(job, earlier)
            else:
                self._submit(job, 1)

    @contextlib.contextmanager
    def _reporting(self, job: Job) -> Iterator[None]:
        """Report what goes wrong before there is a job: else Snakemake would wait for it."""
        try:
            yield
        except StoppedError:
            pass
        except UserError as error:
            self._fail(SubmittedJobInfo(job), error.line())
        except Exception as error:
            self._fail(SubmittedJobInfo(job), with_code("JW203", f"{label_of(job)}: {error}"))

    def _submit(self, job: Job, number: int) -> None:
        """Submit a job; as a training's, the ``number``-th in a row."""
        training = Training.of(job)
        before = training.checkpoint() if training else Checkpoint()
        folder = self.slurm_logdir / f"rule_{job.name}" / get_job_wildcards(job)
        folder.mkdir(parents=True, exist_ok=True)
        label = label_of(job)
        new = Submission(
            name=f"{UNSAFE_RE.sub('_', label)}-{uuid.uuid4().hex[:8]}",
            label=label,
            work=work_of(job),
            outputs=tuple(map(str, job.output)),
            log=str(folder / "%j.log"),
            run=RUN,
            number=number,
            state_folder=before.folder,
            step_before=before.step,
        )
        call = self._submit_call(job, new)
        with self._submitting:
            self._stop_if_closing()
            self._journal.begin(new)
            self._submissions[new.name] = new
        try:
            submitted = self._sbatch(call, self.format_job_exec(job), new)
        except submission.RefusedError as error:
            self._close(new, "REFUSED")
            raise UserError("JW202", f"Slurm refused {label}: {error}") from None
        self.logger.info(f"Submitted job {submitted}, log: {submitted.log_file}")
        self._wait_for(job, submitted)

    def additional_general_args(self) -> str:
        """Options of Snakemake in the job, which runs it itself.

        The plugin's own executor there would start one more Snakemake, for 2 s.
        """
        return "--executor local"

    def get_job_exec_prefix(self, job: Job) -> str:
        """Drop Slurm's variables about the allocation, which an srun in the job would follow."""
        return (
            "unset $(env | sed -n 's/^\\(\\(SLURM\\|SRUN\\|SBATCH\\)_[A-Z0-9_]*\\)=.*/\\1/p'"
            f" | grep -vxE '{'|'.join(KEPT_VARIABLES)}')"
        )

    def _submit_call(self, job: Job, new: Submission) -> str:
        """sbatch with all its options."""
        validate_slurm_extra(job)
        account, wildcards = job.resources.get("slurm_account"), get_job_wildcards(job)
        options = {
            "run_uuid": new.name,
            "slurm_logfile": new.log,
            "comment_str": f"rule_{job.name}" + (wildcards and f"_wildcards_{wildcards}"),
            "account": f"-A {account}" if account else "",
            "partition": self.get_partition_arg(job),
            "workdir": self.workflow.workdir_init,
        }
        settings = self.workflow.executor_settings
        call = get_submit_command(job, options, settings, self._failed_nodes)
        return f"{call}{set_gres_string(job)}"

    def _sbatch(self, call: str, command: str, new: Submission) -> Submission:
        """Call sbatch until it has submitted one job. StoppedError, if Ctrl-C comes before."""
        while True:
            try:
                return self._submitted(new, submission.sbatch(call, command))
            except QueryError as error:
                self._outage.report(error)
            # Slurm may have taken the job, although sbatch did not learn of it.
            if found := self._ask([new.name]).get(new.name):
                return self._submitted(new, found.id)

    def _submitted(self, new: Submission, job: str) -> Submission:
        new = self._journal.update(new, id=job)
        self._submissions[new.name] = new
        return new

    def _wait_for(self, job: Job, submitted: Submission) -> None:
        """Have the queue asked for a job's end."""
        self._changed = time.monotonic()
        aux = {"name": submitted.name}
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=submitted.id, aux=aux))

    def _ask(self, names: Iterable[str]) -> dict[str, SlurmJob]:
        """Slurm's answer, however long that takes. StoppedError, if Ctrl-C comes before."""
        while True:
            self._stop_if_closing()
            try:
                return queue.find_jobs(names)
            except QueryError as error:
                self._outage.report(error)
            self._closing.wait(RETRY_INTERVAL_S)

    def _stop_if_closing(self) -> None:
        if self._closing.is_set():
            raise StoppedError

    # ----------------------------------------------------------------------------- taking over

    def _find_earlier(self) -> list[Submission]:
        """Jobs that an earlier run has left, that Slurm knows and whose outputs are needed."""
        if not (left := self._journal.open_submissions()):
            return []
        submission.wait_for_calls()
        found = self._ask(left)
        needed = {str(file) for job in self.dag.needrun_jobs() for file in job.output}
        earlier, others = [], []
        for name, each in left.items():
            job = found.get(name)
            if not job:
                self._journal.update(each, end="NOT SUBMITTED")
                continue
            each = each if each.id else self._journal.update(each, id=job.id)
            self._states[name] = job.state
            if needed.intersection(each.outputs):
                earlier.append(each)
            elif job.active:
                others.append(str(each))
            else:
                self._journal.update(each, end=job.state)
        if others:
            report(f"Jobs of an earlier run that this one does not need: {', '.join(others)}.")
        return earlier

    def _take_over(self, job: Job) -> Submission | None:
        """The job of an earlier run that does the same, if it still runs or has succeeded."""
        outputs, work = set(map(str, job.output)), work_of(job)
        for each in [x for x in self._earlier.result() if outputs.intersection(x.outputs)]:
            state = self._states[each.name]
            if each.cancelled:
                state = self._wait_for_end(each)
            if each.work != work and state in queue.ACTIVE:
                raise UserError(
                    "JW207",
                    f"job {each} of an earlier run with other settings has not ended: wait for it, "
                    f"or `scancel {each.id}`, and start again",
                )
            complete = state == "COMPLETED" and all(map(os.path.exists, outputs))
            if each.work != work or not (complete or state in queue.ACTIVE):
                report(f"Job {each} of an earlier run: {state}. It is submitted again.")
                self._journal.update(each, end=state)
                continue
            with self._submitting:
                self._stop_if_closing()
                self._submissions[each.name] = each = self._journal.update(each, run=RUN)
            report(f"Took over job {each} of an earlier run: {state}.")
            return each
        return None

    def _wait_for_end(self, cancelled: Submission) -> str:
        """Wait until a cancelled job has ended; its state then."""
        while True:
            job = self._ask([cancelled.name]).get(cancelled.name)
            if not job or not job.active:
                return job.state if job else LOST
            self._closing.wait(MIN_POLL_S)

    # ----------------------------------------------------------------------------- polling

    async def sleep(self) -> None:
        began = time.monotonic()
        while self.wait and time.monotonic() - began < self._poll_interval():
            await asyncio.sleep(0.1)

    def _poll_interval(self) -> float:
        """Short for jobs that have just begun: a training of hours can wait longer."""
        if self._failed_query:
            return RETRY_INTERVAL_S
        return min(MAX_POLL_S, max(MIN_POLL_S, POLL_SHARE * (time.monotonic() - self._changed)))

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        if not active_jobs:
            return
        names = [info.aux["name"] for info in active_jobs]
        try:
            found = await asyncio.to_thread(queue.find_jobs, names)
            self._failed_query = False
        except QueryError as error:
            found, self._failed_query = {}, True
            self._outage.report(error)
        for name, info in zip(names, active_jobs, strict=True):
            state = self._end(name, found.get(name))
            if state is None or self._closing.is_set():
                yield info
            else:
                self._settle(info, state, found.get(name))

    def _end(self, name: str, job: SlurmJob | None) -> str | None:
        """State in which a job has ended; None, it has not, or it is not known."""
        if job:
            self._missing_since.pop(name, None)
            if job.state != self._states.get(name):
                self._states[name] = job.state
                self._changed = time.monotonic()
            return None if job.active else job.state
        if self._failed_query:
            self._missing_since.pop(name, None)
            return None
        since = self._missing_since.setdefault(name, time.monotonic())
        return LOST if time.monotonic() - since > LOST_AFTER_S else None

    def _settle(self, info: SubmittedJobInfo, state: str, slurm_job: SlurmJob | None) -> None:
        """Do what follows on a job's end."""
        job, ended = info.job, self._submissions[info.aux["name"]]
        if state == "COMPLETED":
            if not self.workflow.executor_settings.keep_successful_logs:
                Path(ended.log_file).unlink(missing_ok=True)
            self.report_job_success(info)
            return
        nodes = slurm_job.nodes if slurm_job else ""
        if state == "NODE_FAIL" and nodes.isalnum():  # of one node it is known which
            self._failed_nodes.add(nodes)
        reason = f"job {ended.id} ended in state {state}{nodes and f' on {nodes}'}"
        logs = " and ".join([*map(str, job.log), ended.log_file])
        training = Training.of(job)
        if not training:
            sentence = with_code("JW205", f"{ended.label}: {reason}; see {logs}")
            self._fail(info, sentence, ended.log_file)
            return
        before = Checkpoint(ended.state_folder, ended.step_before)
        decision = training.decide(state, before, ended.number)
        if isinstance(decision, Resubmit):
            report(f"Training {training.name}: resuming from step {decision.step} ({reason}).")
            with self._submitting:
                if not self._closing.is_set():
                    self._pool.submit(self._resubmit, job, ended, state)
            return
        sentence = f"Training {training.name} stopped: {decision.reason} ({reason}); see {logs}"
        self._fail(info, with_code("JW204", sentence), ended.log_file)

    def _resubmit(self, job: Job, ended: Submission, state: str) -> None:
        """Submit a training's next job."""
        with self._reporting(job):
            self._close(ended, state)
            self._submit(job, ended.number + 1)

    def _fail(self, info: SubmittedJobInfo, sentence: str, log: str | None = None) -> None:
        """Report a job's failure."""
        for file in map(Path, info.job.log):
            if not file.exists():  # the job did not come so far; Snakemake prints what it says
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{sentence}\n")
        report(sentence)
        self.report_job_error(info, msg=sentence, aux_logs=[log] if log else [])

    def print_job_error(self, job_info: SubmittedJobInfo, msg: Any = None, **kwargs: Any) -> None:
        """Without the plugin's advice behind the reason."""
        job_info.job.log_error(msg, external_jobid=job_info.external_jobid, **kwargs)

    # ----------------------------------------------------------------------------- the end

    def handle_job_success(self, job: Job) -> None:
        """Snakemake has taken note of the job's success."""
        self._close_all(job, "COMPLETED")

    def handle_job_error(self, job: Job) -> None:
        """Snakemake has taken note of the job's failure."""
        self._close_all(job, "FAILED")

    def _close_all(self, job: Job, end: str) -> None:
        outputs = tuple(map(str, job.output))
        for each in [*self._submissions.values()]:
            if each.outputs == outputs and not each.end:
                self._close(each, self._states.get(each.name, end))

    def _close(self, ended: Submission, end: str) -> None:
        """The next run need not take care of this job."""
        self._submissions[ended.name] = self._journal.update(ended, end=end)

    def cancel(self) -> None:
        """Cancel every job that was submitted, also one that sbatch is just submitting."""
        with self._submitting:
            self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._cancel([each for each in self._submissions.values() if not each.end])
        self.shutdown()

    def _cancel(self, jobs: list[Submission]) -> None:
        jobs = [each for each in jobs if self._states.get(each.name, "PENDING") in queue.ACTIVE]
        if not jobs:
            return
        for each in jobs:
            self._journal.update(each, cancelled=True)
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        words = cancel_words(jobs)
        names = ", ".join(map(str, jobs))
        while failed := [r for r in (run_query("scancel", *w) for w in words) if r.returncode]:
            error = QueryError(f"scancel: {error_message(failed[0])}")
            if time.monotonic() > deadline:
                lines = " && ".join(" ".join(["scancel", *w]) for w in words)
                report(with_code("JW206", f"Not cancelled: {names} ({error}); later: `{lines}`"))
                return
            self._outage.report(error)
            time.sleep(MIN_POLL_S)
        report(f"Cancelled: {names}.")

    def shutdown(self) -> None:
        self._closing.set()
        self._pool.shutdown(wait=True)
        super().shutdown()


class StoppedError(Exception):
    """Ctrl-C came before a job was submitted."""


def cancel_words(jobs: list[Submission]) -> list[list[str]]:
    """Arguments of scancel: all ids at once, and each name of a job whose id is not known."""
    ids = [each.id for each in jobs if each.id]
    names = [["--me", f"--name={each.name}"] for each in jobs if not each.id]
    return ([ids] if ids else []) + names


def label_of(job: Job) -> str:
    """Rule and wildcards of a job."""
    return " ".join(filter(None, [job.name, get_job_wildcards(job)]))


def work_of(job: Job) -> str:
    """Hash of what a job does: the command, its parameters and the content of its inputs.

    Without resources: a job that waits for another partition does the same.
    """
    digest = hashlib.sha256(f"{job.rule.name} {job.output} {job.shellcmd} ".encode())
    digest.update(repr([list(job.params), list(job.params.items())]).encode())
    for file in job.input:
        if not is_flagged(file, "ancient"):
            path = Path(file)
            status = path.stat()
            digest.update(f" {path} {status.st_size} ".encode())
            small = path.is_file() and status.st_size <= MAX_HASHED_BYTES
            digest.update(path.read_bytes() if small else str(status.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
