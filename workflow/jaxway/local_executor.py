"""The local executor: Snakemake's own, with a training's next start where it can be resumed."""

from collections.abc import Callable
from typing import Any

from jaxway_shared.errors import UserError, with_code
from jaxway_shared.training import TrainingState
from snakemake.executors.local import Executor as LocalExecutor
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.jobs import SingleJobExecutorInterface as Job

from jaxway import interrupt, log_filter, run_lock
from jaxway.slurm.outage import report
from jaxway.slurm.resubmission import Resubmit, ResumableJob, Stop, checkpoint_of, decide

INTERRUPT_WAIT_S = 0.5  # Ctrl-C reaches a job as soon as Snakemake


class Executor(LocalExecutor):
    """What Snakemake calls."""

    def __post_init__(self) -> None:
        self._run_lock = run_lock.hold()
        self.logger.addFilter(log_filter.is_kept)
        interrupt.install()
        super().__post_init__()

    def cached_or_run(self, job: Job, run: Callable[..., None], *args: Any) -> None:
        """Run a job; a training again and again, as long as that gets it further."""
        resumable, starts = ResumableJob.of(job), 0
        while True:
            before = checkpoint_of(self._state_of(resumable) if resumable else None)
            try:
                super().cached_or_run(job, run, *args)
                return
            except Exception:
                starts += 1
                if interrupt.requested.wait(INTERRUPT_WAIT_S):
                    raise KeyboardInterrupt from None  # Snakemake says no more about the job
                if not resumable:
                    raise
                state, max_jobs = self._state_of(resumable), resumable.max_jobs
                decision = decide("FAILED", before, state, starts, max_jobs)
                if isinstance(decision, Resubmit) and state and (writer := state.writer()):
                    decision = Stop(f"state {state.folder} is in use by {writer}")
                if not isinstance(decision, Resubmit):
                    reason = f"Training {resumable.training} stopped: {decision.reason}"
                    report(with_code(decision.code, reason))
                    raise
                line = f"Training {resumable.training}: resuming from step {decision.step}."
                report(line)

    def _state_of(self, training: ResumableJob) -> TrainingState | None:
        try:
            latency_wait = self.workflow.execution_settings.latency_wait
            return training.state(latency_wait, interrupt.requested)
        except UserError as error:
            raise WorkflowError(error.line()) from None  # of others, Snakemake prints the stack
