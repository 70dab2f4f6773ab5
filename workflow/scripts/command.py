"""Run a program of the user's own as a training: its jobs, environment and resumption.

docs/programs.md says what the program is given, and what it must do.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxway_job import runtime, training_state
from jaxway_shared import training
from jaxway_shared.errors import fail
from jaxway_shared.training import ProgramSummary, TrainingState

OPTIONS: dict[str, dict[str, Any]] = {
    "command": {
        "type": ["string", "null"],
        "default": None,
        "description": "what to run, required; words are split as a shell does, but no shell runs",
    },
}
POLL_INTERVAL_S = 0.5  # between two looks at a running program
EXIT_SIGNALS = range(129, 160)  # exit codes of a program that a signal ended: 128 + its number


def last_checkpoint_step(folder: Path) -> int | None:
    """Step of the last checkpoint that the program has recorded; None, it has recorded none."""
    return TrainingState.read(folder).last_checkpoint_step


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


def run(
    words: list[str],
    environment: Mapping[str, str],
    poll: Callable[[], None],
    **options: Any,
) -> tuple[int, bool]:
    """Exit code of a program, and whether SIGTERM was forwarded to it; so are SIGUSR1 and SIGINT.

    Calls ``poll`` every POLL_INTERVAL_S, and once more when it has ended.
    """
    received: list[int] = []
    terminated = False
    for forwarded in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(forwarded, lambda number, frame: received.append(number))
    try:
        # It inherits the lock, and so keeps it if this program is killed alone.
        child = subprocess.Popen(words, env=environment, close_fds=False, **options)
    except OSError as error:
        fail("JW310", f"cannot run {words[0]}: {error.strerror}")
    try:
        while child.poll() is None:
            while received:
                number = received.pop(0)
                child.send_signal(number)
                terminated |= number == signal.SIGTERM
            poll()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_INTERVAL_S)
    finally:
        child.kill()
        child.wait()
    poll()
    code = child.returncode
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


def main() -> None:
    """Run the program, and end as it does."""
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_argument(parser)
    args = parser.parse_args()
    words = split_words(args.command)
    runtime.check_container(args)
    with training_state.locked_state(args) as folder:
        if training_state.rewrite_results(folder, args.out):
            return
        check_metrics(folder)
        progress = Progress(args, folder)
        code, _ = run(words, environment(args, folder), progress.poll)
        if code == training_state.EXIT_RESUBMIT:
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
