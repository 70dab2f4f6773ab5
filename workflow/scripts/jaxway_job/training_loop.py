"""The loop of a training: resume, step, measure, save, stop in time, and at the end evaluate."""

import math
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxway_shared.errors import fail
from jaxway_shared.training import ModelSummary, TrainingState, is_due

from jaxway_job import checkpoints, flops, model, runtime, training_state
from jaxway_job.checkpoints import Checkpoints
from jaxway_job.evaluation import Evaluation
from jaxway_job.optimization import Tree
from jaxway_job.origin import Origin
from jaxway_job.startup_timer import StartupTimer
from jaxway_job.trace import Trace
from jaxway_job.training_metrics import TrainingMetrics
from jaxway_job.training_setup import TrainingSetup
from jaxway_job.watchdog import CONTINUE, STOP, Watchdog


class Training:
    """This job of a training. ``folder`` is the training's state, ``origin`` where it begins; None:
    with random parameters."""

    def __init__(
        self, setup: TrainingSetup, folder: Path, timer: StartupTimer, origin: Origin | None
    ) -> None:
        args, self.origin = setup.args, origin
        self.setup, self.args, self.folder, self.timer = setup, args, folder, timer
        self.checkpoints = Checkpoints(folder, args.keep_checkpoints, args.keep_every)
        self.watchdog = Watchdog(
            folder, runtime.process_topology(args), args.checkpoint_minutes, args.hang_minutes
        )
        self.evaluation = Evaluation(setup, lambda: self.watchdog.begin_step(self.watchdog.step))
        self.trace = Trace(folder, args.profile)
        timer.mark("data")

    def run(self) -> None:
        """Train from where the state is to the last step, or until this job's time is over."""
        last = self.args.steps
        first, state = self.restore()
        run_step = self.setup.compile_step()
        if self.args.validate_every:
            self.evaluation.compile()  # so that no validation takes longer than the others
        multihost_utils.sync_global_devices("compiled")  # compiling does not count as a hang
        self.timer.mark("compile")
        self.watchdog.start()
        self.metrics.restart_clock()
        pending: list[tuple[int, Any]] = []
        for step in range(first, last + 1):
            self.watchdog.begin_step(step)
            with self.metrics.paused():
                self.trace.begin(step)
            tokens = self.load_batch(step)
            # StepTraceAnnotation begins in a function of its own, which is traced, too, and which
            # it outlasts: Perfetto drops such steps.
            with jax.profiler.TraceAnnotation("step", step_num=step, _r=1):
                actions = self.setup.actions(self.requested_action())
                state, result = run_step(state, tokens, actions)
            pending.append((step, result))
            # The device computes this step while the one before is processed. The first is
            # processed, and saved, at once: a full disk is not to be found after hours.
            must_save = step in (self.steps_before + 1, last) or is_due(step, self.args.keep_every)
            validates = is_due(step, self.args.validate_every)
            at_once = must_save or validates or self.trace.is_edge(step)
            action = CONTINUE
            while len(pending) > (not at_once):
                action = max(action, self.process_metrics(*pending.pop(0), state["params"]))
            is_best = validates and self.metrics.best_step(step) == step
            if action != CONTINUE or must_save or is_best:
                while pending:
                    self.process_metrics(*pending.pop(0), state["params"])
                self.save(step, state, wait=action == STOP or step == last)
            if self.checkpoints.save_finished():
                newest = self.checkpoints.newest()
                self.checkpoints.delete_old(self.metrics.best_step(newest))
                self.record_progress(newest)
            if action == STOP and step < last:
                reason = self.watchdog.stop_reason()
                training_state.exit_for_resubmission(
                    f"{reason}: checkpoint of step {step} of {last} saved"
                )
        self.watchdog.begin_step(last)
        self.finish(state["params"])

    def validate(self, params: Tree) -> dict[str, Any]:
        """Metrics of a model on the sample of the held-out text, and text that it writes."""
        begin = time.perf_counter()
        loss, tokens = self.evaluation.loss(params), self.evaluation.sample_tokens(params)
        self.validation_seconds = time.perf_counter() - begin
        return {
            "validation_loss": loss,
            "validation_seconds": self.validation_seconds,
            "sample_tokens": tokens,
        }

    @property
    def steps_before(self) -> int:
        """Steps that have been taken where this training begins."""
        return self.origin.step if self.origin and not self.args.restart else 0

    def restore(self) -> tuple[int, Tree]:
        """Number of the first step to do, and the state before it."""
        saved, state = self.checkpoints.restore(self.setup.sharded_shapes())
        if not saved:
            if recorded := TrainingState.read(self.folder).last_checkpoint_step:
                fail(
                    "JW304",
                    f"no checkpoint in {self.checkpoints.folder}, where that of step {recorded} "
                    f"was: bring it back, or delete {self.folder} to start over",
                )
            state = self.start(self.origin) if self.origin else self.setup.sharded_initial_state()
        done = saved or self.steps_before
        self.segments = training_state.SegmentLog(
            self.folder, done, self.timer.process_start, runtime.provenance(self.args)
        )
        self.metrics = TrainingMetrics(self.setup, self.folder, done)
        self.validation_seconds = self.metrics.newest("validation_seconds") or 0.0
        # Of the last job alone: one that was slow once is not to end all that follow.
        earlier = self.segments.earlier
        self.last_jobs_save_seconds = (earlier[-1].save_seconds or 0.0) if earlier else 0.0
        self.record_progress(saved)
        if runtime.first_process():
            doing = f"resuming from step {saved}" if saved else "starting"
            doing += f" from {self.origin}" if self.origin and not saved else ""
            print(f"{doing}, {self.args.steps} steps in all; state {self.folder}", flush=True)
        self.timer.mark("state")
        return done + 1, state

    def start(self, origin: Origin) -> Tree:
        """The state at the checkpoint of another training, or its parameters with new moments."""
        shapes = self.setup.sharded_shapes()
        wanted = {"params": shapes["params"]} if self.args.restart else shapes
        state, problem = checkpoints.read(origin.checkpoint, wanted)
        if problem:
            fail("JW315", f"from: {origin} cannot be used: {problem}")
        return self.setup.with_new_moments(state["params"]) if self.args.restart else state

    def load_batch(self, step: int) -> jax.Array:
        """Tokens of a step."""
        begin = time.perf_counter()
        tokens = self.setup.batch(step)
        self.metrics.data_seconds += time.perf_counter() - begin
        return tokens

    def requested_action(self) -> int:
        """What this process wants to be done after the next step."""
        save_seconds = max(self.last_jobs_save_seconds, self.checkpoints.longest_save)
        return self.watchdog.requested_action(
            self.metrics.step_seconds, save_seconds, self.validation_seconds
        )

    def process_metrics(self, step: int, result: Tree, params: Tree) -> int:
        """Take a step's result, log it if it is time to, and return the action it asks for.

        ``params``: those after the newest step, which is this one where the model is validated.
        """
        try:
            values = jax.device_get(result)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            # A process is gone.
            self.watchdog.abort(f"step {step} failed ({runtime.first_line(error)})")
        loss, norm = float(values["loss"]), float(values["gradient_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.checkpoints.wait()
            fail(
                "JW305",
                f"loss {loss} and gradient norm {norm} at step {step}; last checkpoint: step "
                f"{self.checkpoints.newest()}",
            )
        self.metrics.count_step()
        if "first_step" not in self.timer:
            self.timer.mark("first_step")
        with self.metrics.paused():
            self.trace.end(step)
            validation = self.validate(params) if is_due(step, self.args.validate_every) else {}
        if step % self.args.log_every == 0 or step == self.args.steps or validation:
            self.metrics.log(step, loss, norm, validation)
        return int(values["action"])

    def save(self, step: int, state: Tree, wait: bool) -> None:
        """Begin to write a checkpoint, and wait until it is written if asked to."""
        begin = time.perf_counter()
        # Lines of metrics are not to be lost where their steps are not.
        training_state.sync_metrics(self.folder)
        self.checkpoints.save(step, state)
        self.watchdog.record_save()
        self.watchdog.begin_step(step)
        if wait:
            self.checkpoints.wait()
        self.metrics.checkpoint_seconds += time.perf_counter() - begin

    def record_progress(self, step: int) -> None:
        """Record that the checkpoint of a step is finished."""
        training_state.record_checkpoint(self.folder, step)
        self.segments.record_progress(
            step, startup=dict(self.timer), save_seconds=self.checkpoints.longest_save
        )

    def finish(self, params: Tree) -> None:
        """Evaluate the trained model and write the results."""
        args, record = self.args, self.setup.data.record
        sample = self.evaluation.sample_tokens(params)
        nats = self.evaluation.text_nats(params)
        bits = 1 / math.log(2)
        train_loss = self.metrics.final_loss()
        train_bits = train_loss * bits * record.train_tokens / record.train_bytes
        validation_bits = nats * bits / record.validation_bytes
        self.record_progress(args.steps)
        summary = ModelSummary(
            program="train",
            steps=args.steps,
            seconds=self.segments.seconds,
            tokens_per_second=self.metrics.median("tokens_per_second"),
            provenance=self.segments.current.provenance,
            segments=self.segments.segments,
            parameters=model.parameter_count(params),
            flops_per_token=flops.per_token(self.setup.config, args.context),
            data=record,
            train_nats_per_token=train_loss,
            validation_nats_per_token=nats / record.validation_tokens,
            train_bits_per_byte=train_bits if record.lossless else None,
            validation_bits_per_byte=validation_bits if record.lossless else None,
            unigram_bits_per_byte=record.unigram_bits_per_byte,
            gzip_bits_per_byte=record.gzip_bits_per_byte,
            mfu=self.metrics.median("mfu"),
            mfu_causal=self.metrics.median("mfu_causal"),
            sample=self.evaluation.text(sample),
            sample_tokens=tuple(sample),
        )
        training_state.write_results(self.folder, args.out, summary)
