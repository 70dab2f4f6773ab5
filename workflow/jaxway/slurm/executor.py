"""The Slurm executor: Snakemake's Slurm plugin, made to outlast an outage, a kill and a Ctrl-C.

Differences: the queue is asked often, and a query that fails is no answer; every submission is in a
journal before sbatch is called, so that Ctrl-C cancels all of them and the next run takes over what
a killed one has left; a training's next job is submitted without an error in between; and reasons
are sentences.
"""

import asyncio
import contextlib
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxway_shared.errors import UserError, with_code
from jaxway_shared.training import TrainingState
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import get_job_wildcards, set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface as Job

from jaxway import interrupt, log_filter, run_lock
from jaxway.slurm import queue, sharing, submission
from jaxway.slurm.cancellation import cancel, report_open
from jaxway.slurm.earlier_run import EarlierRun
from jaxway.slurm.journal import NOT_STARTED, RUN_ID, Journal, Submission
from jaxway.slurm.outage import PatientQueue, StoppedError, report
from jaxway.slurm.polling import Polling
from jaxway.slurm.queue import QueryError, SlurmJob
from jaxway.slurm.resubmission import (
    LOCK_WAIT_S,
    Checkpoint,
    Resubmit,
    ResumableJob,
    checkpoint_of,
    decide,
    find_writer,
)
from jaxway.slurm.work import label_of, work_of

MESSAGE_TIMEOUT_S = 10  # Slurm's default: so long a controller may have a request in hand
SBATCH_CALLS = 4  # at a time
THREADS = 64  # most of them wait: for an earlier job's end, a state's lock, a limit of submissions
REFUSAL_INTERVAL_S = 60  # until a training's next job is submitted again
UNSAFE_RE = re.compile(r"[^\w.-]")  # in a job's name, which is an item of a list with commas
NAME_LENGTH = 100  # of its readable part: 500 names are one argument of squeue
# The job's identity, its deadline, and where Slurm's commands find their configuration.
KEPT_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_JOB_END_TIME"),
    "SLURM_CONF",
)


class Executor(SlurmExecutor):
    """What Snakemake calls: run_jobs() from its main thread, check_active_jobs() from another."""

    def __init__(self, workflow: Any, logger: Any) -> None:
        # Before that other thread begins.
        self._closing = threading.Event()  # no submission begins any more
        self._polling = Polling()
        super().__init__(workflow, logger)

    def __post_init__(self, test_mode: bool = False) -> None:
        self._run_lock = run_lock.hold()
        self.logger.addFilter(log_filter.is_kept)
        super().__post_init__(test_mode)
        interrupt.install()
        _ = self.tmpdir  # made here, since several threads would make several
        self._journal = Journal()
        self._queue = PatientQueue(self._closing)
        self._submitting = threading.Lock()  # held while a submission begins
        self._submissions: dict[str, Submission] = {}  # of this run, by name
        self._lost_nodes: dict[str, str] = {}  # by the label of the job that failed with its node
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="submission")
        self._gathering = sharing.Gathering(self._closing)
        self._sbatch_calls = threading.Semaphore(SBATCH_CALLS)
        self._latency_wait = self.workflow.execution_settings.latency_wait
        self._earlier = EarlierRun(self._journal, self._queue, self._closing, self._latency_wait)
        self._found_earlier: Future[None] | None = None

    # ----------------------------------------------------------------------------- submission

    def run_jobs(self, jobs: list[Job]) -> None:
        if not self._found_earlier:
            outputs = {str(file) for job in self.dag.needrun_jobs() for file in job.output}
            self._found_earlier = self._pool.submit(self._earlier.find, outputs)
        for job in jobs:
            self.run_job_pre(job)
            self._pool.submit(self.run_job, job)

    def run_job(self, job: Job) -> None:
        """Wait for the job of an earlier run that does the same, or submit one."""
        with self._reporting(job):
            submission.check_supported(job)
            assert self._found_earlier
            self._found_earlier.result()
            earlier, state, after = self._earlier.take_over(job)
            if not earlier:
                self._submit(job, 1, after)
                return
            self._register(earlier)
            if state in queue.ENDED:
                self._settle(SubmittedJobInfo(job, aux={"name": earlier.name}), state, None)
            else:
                self._wait_for(job, earlier)

    @contextlib.contextmanager
    def _reporting(self, *jobs: Job) -> Iterator[None]:
        """Report what goes wrong before there is a job: else Snakemake would wait for it."""
        try:
            yield
        except StoppedError:
            pass
        except Exception as error:
            for job in jobs:
                line = with_code("JW203", f"{label_of(job)}: {error}")
                line = error.line() if isinstance(error, UserError) else line
                self._fail(SubmittedJobInfo(job), line)

    def _submit(self, job: Job, number: int, after: Iterable[str] = ()) -> None:
        """Submit a job; as a training's, the ``number``-th in a row. It begins when the jobs with
        the ids ``after`` have ended."""
        resumable = ResumableJob.of(job)
        state = self._state_of(resumable) if resumable else None
        before, wait_s = checkpoint_of(state), LOCK_WAIT_S if number > 1 else 0
        if not after and (writer := find_writer(state, wait_s, self._closing)):
            raise UserError("JW300", f"state {before.folder} is in use by {writer}")
        folder = self.slurm_logdir / f"rule_{job.name}" / get_job_wildcards(job)
        folder.mkdir(parents=True, exist_ok=True)
        if number == 1 and not after:  # else an earlier job writes it, or has written it
            for file in job.log:
                Path(file).unlink(missing_ok=True)  # of an earlier run; see _fail()
        label = label_of(job)
        new = Submission(
            name=f"{UNSAFE_RE.sub('_', label)[:NAME_LENGTH]}-{uuid.uuid4().hex[:8]}",
            label=label,
            work=work_of(job),
            outputs=tuple(map(str, job.output)),
            log=str(folder / "%j.log"),
            run=RUN_ID,
            begun=time.time(),
            number=number,
            state_folder=before.folder,
            step_before=before.step,
        )
        shares = sharing.trainings_per_node(job) > 1
        members = [(job, new)] if after or not shares else self._gathering.gather(job, new)
        if members:
            self._submit_together(members, after)

    def _submit_together(self, members: list[sharing.Member], after: Iterable[str]) -> None:
        """Submit jobs as one job of Slurm."""
        jobs = [job for job, _ in members]
        with self._reporting(*jobs):
            call = self._submit_call(members)
            if after:
                call += f" --dependency=afterany:{':'.join(after)}"
            command, *_ = commands = [*map(self.format_job_exec, jobs)]
            if sharing.trainings_per_node(jobs[0]) > 1:
                command = sharing.command(members, commands)
            while not (submitted := self._sbatch(call, command, [new for _, new in members])):
                if self._closing.wait(REFUSAL_INTERVAL_S):
                    raise StoppedError
            for job, each in zip(jobs, submitted, strict=True):
                self.logger.info(f"Submitted job {each}, log: {each.log_file}")
                self._wait_for(job, each)

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

    def _submit_call(self, members: list[sharing.Member]) -> str:
        """sbatch with all its options; those of the first job are those of the others."""
        job, new = members[0]
        validate_slurm_extra(job)
        account = job.resources.get("slurm_account")
        wildcards = ",".join(get_job_wildcards(job) for job, _ in members)  # the monitor reads it
        options = {
            "run_uuid": new.slurm_name,
            "slurm_logfile": new.log,
            "comment_str": f"rule_{job.name}" + (wildcards and f"_wildcards_{wildcards}"),
            "account": f"-A {account}" if account else "",
            "partition": self.get_partition_arg(job),
            "workdir": self.workflow.workdir_init,
        }
        settings = self.workflow.executor_settings
        lost = {self._lost_nodes.pop(each.label, "") for _, each in members}
        excluded = self._failed_nodes | lost - {""}
        call = get_submit_command(job, options, settings, excluded)
        if minutes := sharing.time_limit(members):  # of several such options sbatch takes the last
            call += f" --time={minutes}"
        if tasks := job.resources.get("tasks_per_node"):  # ignored by the plugin for a job on GPUs
            call += f" --ntasks-per-node={tasks}"
        configured = re.findall(r"--exclude=(\S+)", job.resources.get("slurm_extra") or "")
        if configured and excluded:
            call += f" --exclude={','.join([*configured, *sorted(excluded)])}"
        return f"{call}{set_gres_string(job)}"

    def _sbatch(self, call: str, command: str, news: list[Submission]) -> list[Submission]:
        """Submit a job; none where Slurm refuses the next one of a training. StoppedError, if
        Ctrl-C comes before."""
        with self._sbatch_calls:
            self._register(*news, begins=True)
            try:
                job = self._job_id(call, command, news[0])
                return [self._record(new, id=job) for new in news]
            except submission.RefusedError as error:
                for new in news:
                    self._record(new, end="REFUSED")
                labels = ", ".join(new.label for new in news)
                if news[0].number == 1:
                    raise UserError("JW202", f"Slurm refused {labels}: {error}") from None
                # It took the last one: what has changed may change back, as a limit of jobs does.
                self._queue.report_refusal(labels, error)
                return []

    def _job_id(self, call: str, command: str, new: Submission) -> str:
        """Call sbatch until it has submitted one job."""
        while True:
            try:
                return submission.sbatch(call, command)
            except QueryError as error:
                self._queue.report_outage(error)
            # Slurm may have taken the job, or be about to, although sbatch did not learn of it.
            time.sleep(MESSAGE_TIMEOUT_S)  # also after Ctrl-C: scancel must find the job
            if found := self._queue.find_jobs([new.slurm_name]).get(new.slurm_name):
                return found.id

    def _register(self, *entries: Submission, begins: bool = False) -> None:
        """From now on Ctrl-C cancels them. StoppedError, if Ctrl-C has come."""
        with self._submitting:
            if self._closing.is_set():
                raise StoppedError
            for entry in entries:
                if begins:
                    self._journal.begin(entry)
                self._submissions[entry.name] = entry

    def _record(self, entry: Submission, **fields: Any) -> Submission:
        """Record new values of a submission's fields; the submission with them."""
        self._submissions[entry.name] = new = self._journal.update(entry, **fields)
        return new

    def _wait_for(self, job: Job, submitted: Submission) -> None:
        """Have the queue asked for a job's end."""
        self._polling.submitted()
        aux = {"name": submitted.name}
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=submitted.id, aux=aux))

    # ----------------------------------------------------------------------------- polling

    async def sleep(self) -> None:
        began = time.monotonic()
        while self.wait and time.monotonic() - began < self._polling.interval():
            await asyncio.sleep(0.1)

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        if not active_jobs:
            return
        names = [self._submissions[info.aux["name"]].slurm_name for info in active_jobs]
        ended, found = {}, {}
        try:
            found = await asyncio.to_thread(queue.find_jobs, names)
            ended = self._polling.ends(names, found)
        except QueryError as error:
            self._polling.no_answer()
            self._queue.report_outage(error)
        for name, info in zip(names, active_jobs, strict=True):
            if name in ended and not self._closing.is_set():
                self._settle(info, ended[name], found.get(name))
            else:
                yield info

    def _settle(self, info: SubmittedJobInfo, state: str, slurm_job: SlurmJob | None) -> None:
        """Do what follows on a job's end."""
        job, ended = info.job, self._submissions[info.aux["name"]]
        if ended.shared_job and ended.has_succeeded():  # the state is of all that shared it
            state = "COMPLETED"
        if state == "COMPLETED":
            if not self.workflow.executor_settings.keep_successful_logs:
                with contextlib.suppress(OSError):
                    Path(ended.log_file).unlink()
            self.report_job_success(info)
            return
        nodes = slurm_job.nodes if slurm_job else ""
        if state == "NODE_FAIL" and re.fullmatch("[^[,]+", nodes):  # of several: which?
            self._lost_nodes[ended.label] = nodes  # Slurm may not know yet that it is down
        reason = f"job {ended.id} ended in state {state}{nodes and f' on {nodes}'}"
        if state != "CANCELLED" and not ended.was_started():
            state, reason = NOT_STARTED, f"{reason} before its turn"
        logs = " and ".join([*map(str, job.log), ended.log_file])
        if resumable := ResumableJob.of(job):
            with self._submitting:
                if not self._closing.is_set():
                    self._pool.submit(self._follow, resumable, info, state, reason, logs)
            return
        sentence = with_code("JW205", f"{ended.label}: {reason}; see {logs}")
        self._fail(info, sentence, ended.log_file)

    def _follow(
        self, resumable: ResumableJob, info: SubmittedJobInfo, state: str, reason: str, logs: str
    ) -> None:
        """Submit a training's next job, or report why none follows."""
        job, ended = info.job, self._submissions[info.aux["name"]]
        training = f"Training {resumable.training}"
        before = Checkpoint(ended.state_folder, ended.step_before)
        with self._reporting(job):
            now = self._state_of(resumable)
            decision = decide(state, before, now, ended.number, resumable.max_jobs)
            if isinstance(decision, Resubmit):
                report(f"{training}: resuming from step {decision.step} ({reason}).")
                self._record(ended, end=state)
                self._submit(job, ended.number + 1)
            else:
                sentence = f"{training} stopped: {decision.reason} ({reason}); see {logs}"
                self._fail(info, with_code(decision.code, sentence), ended.log_file)

    def _state_of(self, training: ResumableJob) -> TrainingState | None:
        return training.state(self._latency_wait, self._closing)

    def _fail(self, info: SubmittedJobInfo, sentence: str, log: str | None = None) -> None:
        """Report a job's failure."""
        with contextlib.suppress(OSError):  # such as a full disk; the failure is reported anyway
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
        """The next run need not take care of what was submitted for this job."""
        same = (label_of(job), tuple(map(str, job.output)))
        for each in [*self._submissions.values()]:
            if (each.label, each.outputs) == same and not each.end:
                state = end if each.shared_job else self._polling.state(each.name, end)
                self._record(each, end=state)

    def cancel(self) -> None:
        """Cancel every job that was submitted, also one that sbatch is just submitting."""
        for each in (left := self._close()):
            self._record(each, cancelled=True)
        cancel(left, self._queue)
        super().shutdown()
        report_open(self._journal, self._submissions)
        if local := self.workflow.scheduler._local_executor:  # Snakemake would end before its jobs
            local.cancel()

    def shutdown(self) -> None:
        """Snakemake has no job left, or has failed itself: then jobs of this run are left."""
        if left := self._close():
            report(f"Jobs that the next run takes over: {', '.join(map(str, left))}.")
        super().shutdown()

    def _close(self) -> list[Submission]:
        """Submit nothing more; the jobs that have not ended."""
        interrupt.only_answer()
        with self._submitting:
            self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        left = [each for each in self._submissions.values() if not each.end]
        return [each for each in left if self._polling.state(each.slurm_name) not in queue.ENDED]
