"""Run a program of the user's own as a training: its jobs, environment and resumption.

docs/programs.md says what the program is given, and what it must do.
"""

import argparse
import contextlib
import ctypes
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxway_job import runtime, training_state
from jaxway_shared import own_checkpoints, training
from jaxway_shared.errors import fail
from jaxway_shared.training import ProgramSummary, TrainingState

OPTIONS: dict[str, dict[str, Any]] = {
    "command": {
        "type": ["string", "null"],
        "default": None,
        "description": "what to run, required; words are split as a shell does, but no shell runs; "
        "`$JAXWAY_STATE` and other variables of that kind are replaced",
    },
    "checkpoints": {
        "type": ["string", "null"],
        "default": None,
        "affects_result": False,
        "description": "of a program that keeps its own checkpoints: what is below `JAXWAY_STATE` "
        "once one is complete, with `{step}` for its step and `*` for anything but `/`, as in "
        "`checkpoint-{step}/trainer_state.json`",
    },
    "stop_seconds": {
        "type": "integer",
        "minimum": 0,
        "default": 120,
        "affects_result": False,
        "description": "such a program gets SIGTERM so long before the job ends",
    },
}
POLL_INTERVAL_S = 0.5  # between two looks at a running program
GROUP_WAIT_S = 300  # for processes that outlive the one that started them, then SIGKILL
KILL_WAIT_S = 10  # for their end then, unless somebody else leaves one as a zombie
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
PR_SET_CHILD_SUBREAPER = 36
SHELLS = ("bash", "dash", "ksh", "sh", "zsh")
OWN_VARIABLE_RE = re.compile(r"\$(?:(JAXWAY_\w+)|\{(JAXWAY_\w+)\})")
EXIT_SIGNALS = range(129, 160)  # exit codes of a program that a signal ended: 128 + its number


def last_checkpoint_step(folder: Path) -> int | None:
    """Step of the last checkpoint that the program has recorded; None, it has recorded none."""
    return TrainingState.read(folder).last_checkpoint_step


class OwnCheckpoints:
    """Looks after a program that keeps its own checkpoints, and asks it to stop in time.

    ``newest`` finds the step of the newest complete one, ``margin_s`` is before the deadline.
    """

    def __init__(self, folder: Path, newest: Callable[[], int], margin_s: float) -> None:
        self.folder, self.newest = folder, newest
        self.stop_time = (training_state.deadline() or math.inf) - margin_s
        self.record()

    def record(self) -> None:
        """Record the newest checkpoint, if it is another one."""
        step = self.newest()
        if step != last_checkpoint_step(self.folder):
            training_state.record_checkpoint(self.folder, step)

    def poll(self) -> None:
        """Record the newest checkpoint; when it is time, have this program forward SIGTERM."""
        self.record()
        if time.time() > self.stop_time:
            self.stop_time = math.inf
            signal.raise_signal(signal.SIGTERM)


class Progress:
    """Records the program's checkpoints in the training's segments."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.folder, self.step = folder, last_checkpoint_step(folder) or 0
        self.segments = training_state.SegmentLog(
            folder, self.step, time.perf_counter(), runtime.provenance_without_devices(args)
        )

    def poll(self) -> None:
        """Record the last checkpoint, if it is another one."""
        step = last_checkpoint_step(self.folder)
        if step is not None and step != self.step:
            self.step = step
            self.segments.record_progress(step)

    def summary(
        self,
        program: str,
        command: list[str],
        steps: int | None,
        loss: float | None = None,
        tokens_per_second: float | None = None,
    ) -> ProgramSummary:
        """Summary of the training, which ends now."""
        self.segments.record_progress(self.step)
        return ProgramSummary(
            program=program,
            steps=steps,
            seconds=self.segments.seconds,
            tokens_per_second=tokens_per_second,
            provenance=self.segments.current.provenance,
            segments=self.segments.segments,
            command=tuple(command),
            loss=loss,
        )


def environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Environment of a program that shall see its devices, and only those."""
    topology = runtime.process_topology(args)
    result = {**os.environ, "JAXWAY_STATE": str(folder)}
    if args.platform:
        result["JAX_PLATFORMS"] = args.platform
    if args.platform == "cpu":
        count = f"--xla_force_host_platform_device_count={len(topology.local_devices)}"
        result["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    if topology.processes > 1:
        result["JAX_COORDINATOR_ADDRESS"] = topology.coordinator
        result["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, topology.local_devices))
    return result


def children(process: int) -> list[int]:
    """Processes that a process has started or, by its being a subreaper, adopted."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if file.read_text().rpartition(")")[2].split()[1] == str(process):
                found.append(int(file.parent.name))
    return found


def addressees(process: int) -> list[int]:
    """Who gets a signal: a process; of a shell, which tells nobody, also whom it has started.

    Other programs see to their own: one that is to save still needs the workers that read its data.
    """
    with contextlib.suppress(OSError):  # it has ended
        if Path(f"/proc/{process}/comm").read_text().strip() in SHELLS:
            below = [each for child in children(process) for each in addressees(child)]
            return [process, *below]
    return [process]


class ProcessGroup:
    """A program and what it starts, as `bash -c 'a | b'`, unless that begins a group of its own."""

    def __init__(self, words: list[str], environment: Mapping[str, str], options: Any) -> None:
        # Whoever outlives its parent becomes a child of this process, which can wait for it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            # It inherits the lock, and so keeps it if this program is killed alone.
            self.leader = subprocess.Popen(
                words, env=environment, close_fds=False, start_new_session=True, **options
            )
        except OSError as error:
            fail("JW310", f"cannot run {words[0]}: {error.strerror}")
        self.end: float | None = None  # when the leader was seen to have ended
        self.terminated: set[int] = set()  # who got SIGTERM

    def signal(self, number: int, process: int | None = None) -> None:
        """Send a signal to the leader, or to another process, and to whom it would not tell."""
        for each in addressees(process or self.leader.pid):
            if number == signal.SIGTERM:
                self.terminated.add(each)
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)

    def orphans(self) -> list[int]:
        """What has outlived the process that started it."""
        found = []
        for process in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process) == self.leader.pid:
                    found.append(process)
        return found

    def wait(self, timeout_s: float) -> bool:
        """Whether all have ended within so long. What outlives its leader is told to end, too."""
        if self.end is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(timeout_s)
                self.end = time.monotonic()
        elif self.alive():
            time.sleep(timeout_s)
        if self.end is None:
            return False
        for process in {*self.orphans()} - self.terminated:
            self.signal(signal.SIGTERM, process)
        return not self.alive()

    def alive(self) -> bool:
        """Whether a process is left; asked after the end of the leader, whose code it takes."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.leader.pid, os.WNOHANG) != (0, 0):
                pass
        try:
            os.killpg(self.leader.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """End all that is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.leader.pid, signal.SIGKILL)
        self.leader.wait()
        killed = time.monotonic()
        while self.alive() and time.monotonic() - killed < KILL_WAIT_S:
            time.sleep(0.01)


def run(
    words: list[str],
    environment: Mapping[str, str],
    poll: Callable[[], None],
    **options: Any,
) -> tuple[int, bool]:
    """Exit code of a program, and whether SIGTERM was forwarded to its processes.

    Calls ``poll`` every POLL_INTERVAL_S, and once more when all of them have ended.
    """
    received: list[int] = []
    terminated = False
    for forwarded in FORWARDED:
        if signal.getsignal(forwarded) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(forwarded, lambda number, frame: received.append(number))
    group = ProcessGroup(words, environment, options)
    try:
        while not group.wait(POLL_INTERVAL_S):
            while received:
                number = received.pop(0)
                for process in [None] if group.end is None else group.orphans():
                    group.signal(number, process)
                terminated |= number == signal.SIGTERM
            poll()
            if group.end and time.monotonic() - group.end > GROUP_WAIT_S:
                break
    finally:
        group.kill()
    poll()
    code = group.leader.returncode
    return (code if code >= 0 else 128 - code), terminated


def check_metrics(folder: Path) -> None:
    """End the program if the metrics, which the user's program writes, cannot be read."""
    path = folder / training.METRICS
    try:
        training.read_metrics(path)
    except ValueError:
        fail("JW312", f"{path}: a line is no JSON object with an integer `step`")


def split_words(command: str | None) -> list[str]:
    """Words of the command. Ends the program if there are none."""
    try:
        return shlex.split(command or "") or fail("JW310", "set `command`, what to run")
    except ValueError as error:
        fail("JW310", f"command: {error}")


def expand(word: str, environment: Mapping[str, str]) -> str:
    """A word with the variables that this program sets; one that is not set stays as it is."""
    return OWN_VARIABLE_RE.sub(lambda found: environment.get(found[1] or found[2], found[0]), word)


def watch(args: argparse.Namespace, folder: Path) -> OwnCheckpoints | None:
    """What looks after the program's own checkpoints; None, it records their steps itself."""
    pattern = args.checkpoints
    if pattern is None:
        return None
    if problem := own_checkpoints.problem(pattern):
        fail("JW310", f"checkpoints: {pattern} {problem}")
    return OwnCheckpoints(
        folder, lambda: own_checkpoints.newest(folder, pattern), args.stop_seconds
    )


def main() -> None:
    """Run the program, and end as it does."""
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_arguments(parser)
    args = parser.parse_args()
    words = split_words(args.command)
    runtime.check_container(args)
    identity = training_state.identity_of(args, "command", OPTIONS)
    with training_state.locked_state(args, identity) as folder:
        if training_state.rewrite_results(folder, args.out):
            return
        check_metrics(folder)
        watched = watch(args, folder)
        progress = Progress(args, folder)
        variables = environment(args, folder)
        words = [expand(word, variables) for word in words]

        def poll() -> None:
            if watched:
                watched.poll()
            progress.poll()

        code, terminated = run(words, variables, poll)
        # What stops such a program has no say in its exit code: 0, 1, that of the signal.
        if code == training_state.EXIT_RESUBMIT or (watched and terminated):
            training_state.exit_for_resubmission(f"the command exited with code {code}")
        if code in EXIT_SIGNALS:
            sys.exit(code)
        if code:
            fail("JW311", f"the command exited with code {code}; see the log")
        check_metrics(folder)
        summary = progress.summary("command", words, last_checkpoint_step(folder))
        training_state.write_results(folder, args.out, summary)


if __name__ == "__main__":
    main()
