"""`jaxway check-program`: whether a training's command starts, stops and resumes as jobs need it.

It runs here, by the program that starts it in a job, with a state of its own below `$SCRATCH`.
"""

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from jaxway_shared import own_checkpoints, training
from jaxway_shared.errors import UserError, parse
from jaxway_shared.training import TrainingState

from jaxway.config.jobs import Config, TrainJob
from jaxway.config.load import add_arguments, load, read
from jaxway.config.schema import WORKFLOW, nearest
from jaxway.launch import WORKING_DIRECTORY, Launch, Words, prepare_environment
from jaxway.preflight.finding import FAIL, Finding, failure, passed, warning
from jaxway.processes import KILL_WAIT_S, send, with_descendants

EXIT_RESUBMIT = 75  # as jaxway_job.training_state has it
POLL_INTERVAL_S = 0.05
LOG = Path("logs/check_program.log")


@dataclass
class Trial:
    """A command that is tried, and the state in which it is."""

    words: Words
    state: Path
    pattern: str | None  # of its own checkpoints
    timeout_s: float  # for a checkpoint
    stop_s: float  # for its end after SIGTERM
    process: subprocess.Popen[bytes] = field(init=False)
    began: float = field(init=False)  # or was told to stop

    def start(self) -> None:
        """Begin a job."""
        self.began = time.monotonic()
        with LOG.open("a") as log:
            self.process = subprocess.Popen(
                self.words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def seconds(self) -> str:
        """How long the job has run, or how long ago it was told to stop."""
        return f"{time.monotonic() - self.began:.1f} s"

    def stop(self) -> int | None:
        """Exit code after SIGTERM to all processes, as Slurm sends it; None, it has not ended."""
        self.began = time.monotonic()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(self.stop_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End what is left of the job, with what it has started: its launcher waits for that."""
        while self.process.poll() is None:
            send(signal.SIGKILL, reversed(with_descendants([self.process.pid])))
            time.sleep(POLL_INTERVAL_S)

    def step(self) -> int:
        """Step of the last checkpoint; 0, there is none."""
        return TrainingState.read(self.state).last_checkpoint_step or 0

    def wait_for_checkpoint(self, after: int) -> bool:
        """Whether there is a checkpoint after a step, before the job ends or its time is over."""
        while not (found := self.step() > after) and self.process.poll() is None:
            if time.monotonic() - self.began > self.timeout_s:
                break
            time.sleep(POLL_INTERVAL_S)
        return found or self.step() > after

    def ended(self) -> str:
        """How a job has ended, which was to go on."""
        error = TrainingState.read(self.state).error
        found = parse(error) if error else None
        reason = str(found or error or f"exit code {self.process.returncode}")
        return f"ended after {self.seconds}: {reason}; see {LOG}"

    def written(self, step: int) -> list[tuple[str, int]]:
        """What shows that steps up to this one are done again: metrics, and when which file was
        written."""
        lines = training.metrics_text(self.state / training.METRICS)
        done = [line for line in lines if training.MetricsLine.parse(line).step <= step]
        found = own_checkpoints.find(self.state, self.pattern) if self.pattern else {}
        times = [(str(p), p.stat().st_mtime_ns) for number, p in found.items() if number <= step]
        return [("metrics", len(done)), *sorted(times)]


def check(trial: Trial) -> Iterator[Finding]:
    """What is found by starting, stopping and resuming, as long as there is something to try."""
    trial.start()
    try:
        for subject, finding in attempts(trial):
            yield finding._replace(subject=subject)
    finally:
        trial.kill()


def attempts(trial: Trial) -> Iterator[tuple[str, Finding]]:
    """The three attempts: their names, and what each has found."""
    where = trial.pattern or training.LAST_CHECKPOINT_STEP
    if not trial.wait_for_checkpoint(0):
        if trial.process.poll() is None:
            message = (
                f"no checkpoint within {trial.seconds} ({where}): save more often, or --minutes"
            )
        elif trial.process.returncode:
            message = trial.ended()
        else:
            message = f"finished after {trial.seconds}, without a checkpoint ({where})"
        yield "start", failure("JW557", message)
        return
    yield "start", passed(f"checkpoint of step {trial.step()} after {trial.seconds}")
    if trial.process.poll() is not None:
        message = f"it {trial.ended()}; let it last longer, so that it can be stopped"
        yield "stop", failure("JW557", message)
        return
    stopped = check_stop(trial)
    yield "stop", stopped
    trial.kill()
    if stopped.status is not FAIL:
        yield "resume", check_resume(trial)


def check_stop(trial: Trial) -> Finding:
    """How it ends when it is told to."""
    code = trial.stop()
    if code is None:
        return warning(
            f"still runs {trial.seconds} after SIGTERM: at the end of each job, what it has done "
            f"since its last checkpoint (here of step {trial.step()}) will be lost"
        )
    if code == 0:
        return failure(
            "JW557", "exit code 0 after SIGTERM means finished: exit with 75, or set `checkpoints`"
        )
    if TrainingState.read(trial.state).error is not None:
        return failure(
            "JW557",
            f"{trial.ended()}; after SIGTERM exit with 75 or by the signal, or set `checkpoints`",
        )
    how = "to be resumed" if code == EXIT_RESUBMIT else f"exit code {code}"
    return passed(f"ended {trial.seconds} after SIGTERM, {how}, checkpoint of step {trial.step()}")


def check_resume(trial: Trial) -> Finding:
    """Whether the next job goes on where the last one was saved."""
    saved = trial.step()
    before = trial.written(saved)
    trial.start()
    grown = trial.wait_for_checkpoint(saved)
    seconds = trial.seconds
    if not set(before) >= set(trial.written(saved)):
        return failure("JW557", f"steps up to {saved}, which were saved, are done again")
    if grown:
        return passed(f"from step {saved} to {trial.step()} after {seconds}")
    if trial.process.poll() is None:
        return failure("JW557", f"no checkpoint after step {saved} within {seconds}")
    if trial.process.returncode:
        return failure("JW557", f"it {trial.ended()}")
    return passed(f"finished at step {saved} after {seconds}")


def job_of(config: Config, name: str) -> TrainJob:
    """The training of a name, as its one process on this machine runs it."""
    own = {key: job for key, job in config.train.items() if job.program != "train"}
    if name not in own:
        message = f"no training with a program of its own is named {name}; {nearest(name, [*own])}"
        raise UserError("JW006", message)
    job = own[name]
    return replace(job, placement=replace(job.placement, nodes=1, processes_per_node=1))


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("name", help="of an entry of `train`")
    parser.add_argument("--minutes", type=float, default=5, help="for each checkpoint; default: 5")
    parser.add_argument("--platform", choices=("cpu", "cuda"), help="in place of the configured")


def run(args: argparse.Namespace) -> None:
    profile, settings, site = read(args)
    config = load(settings, site)
    job = job_of(config, args.name)
    contained = site.container or "apptainer" in str(profile.get("software-deployment-method"))
    if args.platform:
        config = replace(config, platform=args.platform)
    launch = Launch(WORKFLOW.parent, config, site, contained, profile.get("apptainer-args", ""))
    prepare_environment(launch.root, contained)
    os.environ.pop("JAXWAY_DEADLINE", None)
    pattern = job.options.get("checkpoints")
    LOG.parent.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    Path(site.scratch).mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="check-program-", dir=site.scratch) as folder:
        words = [*launch.program(job, job.program), f"--state={folder}/state"]
        words += [f"--out={folder}/summary.json"]
        words = [os.getcwd() if word == WORKING_DIRECTORY else word for word in words]
        stop_s = job.options["stop_seconds"] if pattern else KILL_WAIT_S
        state = Path(folder, "state")
        state.mkdir()
        for finding in check(Trial(words, state, pattern, 60 * args.minutes, stop_s)):
            print(finding, flush=True)
            failed |= finding.status is FAIL
    if failed:
        raise UserError("JW557", f"{args.name} does not run as jobs need it; its output: {LOG}")
