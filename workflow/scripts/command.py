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

OPTIONS: dict[str, dict[str, Any]] = {
    "command": {
        "type": ["string", "null"],
        "default": None,
        "description": "what to run, required; words are split as a shell does, but no shell runs",
    },
}
TICK = 0.5  # seconds between two looks at a running program
SIGNALS = range(129, 160)  # exit codes of what a signal ended: 128 and its number


class Progress:
    """Follows the step that the program says is safe."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.folder, self.step = folder, training_state.safe_step(folder) or 0
        began = time.perf_counter()
        self.segment = training_state.Segment(folder, self.step, began, runtime.origin(args))

    def look(self, child: Any = None) -> None:
        """Note the step that is safe, if it is another one."""
        step = training_state.safe_step(self.folder)
        if step is not None and step != self.step:
            self.step = step
            self.segment.note(step)

    def summary(self) -> dict[str, Any]:
        """The part of the summary that all programs share."""
        self.segment.note(self.step)
        return self.segment.summary() | {"steps": training_state.safe_step(self.folder)}


def environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Environment of a program that shall see its devices, and only those."""
    here = runtime.place(args)
    result = {**os.environ, "JAXWAY_STATE": str(folder)}
    if args.platform:
        result["JAX_PLATFORMS"] = args.platform
    if args.platform == "cpu":
        count = f"--xla_force_host_platform_device_count={len(here.local_devices)}"
        result["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    if here.processes > 1:
        result["JAX_COORDINATOR_ADDRESS"] = here.coordinator
        result["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, here.local_devices))
    return result


def run(
    words: list[str],
    environment: Mapping[str, str],
    look: Callable[[subprocess.Popen[bytes]], None],
    **options: Any,
) -> tuple[int, bool]:
    """Exit code of a program, and whether SIGTERM was passed on to it; so are SIGUSR1 and SIGINT.

    Looks at it every ``TICK``, and once more when it has ended.
    """
    received: list[int] = []
    told = False
    for passed_on in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(passed_on, lambda number, frame: received.append(number))
    try:
        # It inherits the lock, and so keeps it if this program is killed alone.
        child = subprocess.Popen(words, env=environment, close_fds=False, **options)
    except OSError as error:
        runtime.fail(f"cannot run {words[0]}: {error.strerror}")
    try:
        while child.poll() is None:
            while received:
                number = received.pop(0)
                child.send_signal(number)
                told |= number == signal.SIGTERM
            look(child)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(TICK)
    finally:
        child.kill()
        child.wait()
    look(child)
    code = child.returncode
    return (code if code >= 0 else 128 - code), told


def check_metrics(folder: Path) -> None:
    """End the program if the metrics, which are the user's, are not what the report needs."""
    try:
        lines = training_state.read_lines(folder / "metrics.jsonl")
        whole = all(isinstance(line["step"], int) for line in lines)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        runtime.fail(f"{folder}/metrics.jsonl: a line is no JSON object with an integer `step`")


def main() -> None:
    """Run the program, and end as it does."""
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_argument(parser)
    args = parser.parse_args()
    try:
        words = shlex.split(args.command or "") or runtime.fail("set `command`, what to run")
    except ValueError as error:
        runtime.fail(f"command: {error}")
    runtime.check_container(args)
    with training_state.opened(args) as folder:
        if training_state.finished(folder, args.out):
            return
        check_metrics(folder)
        progress = Progress(args, folder)
        code, _ = run(words, environment(args, folder), progress.look)
        if code == training_state.TO_BE_CONTINUED:
            training_state.to_be_continued("the command says so")
        if code in SIGNALS:
            sys.exit(code)
        if code:
            runtime.fail(f"the command ended with exit code {code}; see the log")
        check_metrics(folder)
        summary = {"program": "command", "command": words, **progress.summary()}
        training_state.finish(folder, args.out, summary)


if __name__ == "__main__":
    main()
