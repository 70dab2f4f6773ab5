"""What a training monitors between its steps: time, signals, and whether all processes respond."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from jaxway_shared.errors import this_program, with_code

from jaxway_job import training_state
from jaxway_job.runtime import ProcessTopology

# Actions that a process requests after a step; the greatest of all processes' is taken.
CONTINUE, SAVE, STOP = 0, 1, 2
SHUTDOWN_MARGIN_S = 30  # of the job's time that are left to end it
HANG_REPORT_WAIT_S = 5  # until all processes have noticed that a step does not end


class Watchdog:
    """Decides when a training saves and stops, and ends one whose processes wait for each other.

    ``folder`` is the training's state, in which the processes of a hanging training find each
    other's reports. ``save_minutes``: time between checkpoints. ``hang_minutes``: a step that takes
    longer is never going to end, since a process is missing or does not answer.
    """

    def __init__(
        self, folder: Path, topology: ProcessTopology, save_minutes: float, hang_minutes: float
    ) -> None:
        self.hang_dir, self.topology = folder / "hang_reports", topology
        self.save_seconds, self.hang_seconds = 60 * save_minutes, 60 * hang_minutes
        self.deadline = training_state.deadline()
        self.signal = ""
        self.step, self.last_step_start, self.last_save = 0, time.monotonic(), time.monotonic()
        self.report(topology.process).unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self.record_signal)

    def report(self, process: int) -> Path:
        """File in which a process of a hanging training writes where it is."""
        return self.hang_dir / str(process)

    def record_signal(self, number: int, _: object) -> None:
        """Remember a signal: the step that runs ends first."""
        self.signal = signal.Signals(number).name

    def requested_action(
        self, step_seconds: float, save_seconds: float, validation_seconds: float
    ) -> int:
        """What this process wants to be done after the next step.

        It stops while there is time to end the steps that are under way, to validate and to save.
        """
        needed = 3 * step_seconds + 2 * save_seconds + validation_seconds + SHUTDOWN_MARGIN_S
        if self.signal or (self.deadline and time.time() + needed > self.deadline):
            return STOP
        since_save = time.monotonic() - self.last_save
        return SAVE if since_save > self.save_seconds else CONTINUE

    def stop_reason(self) -> str:
        """Why this process wants to stop, or another one does."""
        return f"received {self.signal}" if self.signal else "time limit approaching"

    def begin_step(self, step: int) -> None:
        """Note that a step, or what comes after the last one, begins now."""
        self.step, self.last_step_start = step, time.monotonic()

    def record_save(self) -> None:
        """Note that a checkpoint has been begun now."""
        self.last_save = time.monotonic()

    def start(self) -> None:
        """Check from now on, in a thread, whether steps end."""
        self.last_step_start = time.monotonic()
        threading.Thread(target=self.check_steps, daemon=True).start()

    def check_steps(self) -> NoReturn:
        """Abort when a step does not end. The time for which this process was stopped (SIGSTOP)
        does not count, so it is added up from short sleeps."""
        interval = min(1, self.hang_seconds / 4)
        seen, waited = self.last_step_start, 0.0
        while True:
            time.sleep(interval)
            waited += interval
            if self.last_step_start != seen:
                seen, waited = self.last_step_start, 0.0
            if waited > self.hang_seconds:
                self.abort(f"step {self.step} has not ended for {self.hang_seconds / 60:g} min")

    def abort(self, problem: str) -> NoReturn:
        """End this process with an error that names the processes that may be the cause."""
        own = self.report(self.topology.process)
        part = own.with_suffix(".part")
        with suppress(OSError):  # a full disk: then the others do not hear of this process
            self.hang_dir.mkdir(exist_ok=True)
            part.write_text(f"{self.step} {socket.gethostname()}")
            part.replace(own)
        time.sleep(HANG_REPORT_WAIT_S)
        suspects = self.suspects() or "all processes answer: a device or the network is stuck"
        sentence = with_code("JW306", f"{problem}; {suspects}")
        print(f"{this_program()}: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    def suspects(self) -> str:
        """Processes that have not come as far as the others, or do not answer at all."""
        reports: dict[int, list[str] | None] = {}
        for process in range(self.topology.processes):
            file = self.report(process)
            reports[process] = file.read_text().split() if file.exists() else None
        newest = max((int(report[0]) for report in reports.values() if report), default=0)
        return ", ".join(
            f"process {process} on {report[1]} is at step {report[0]}"
            if report
            else f"process {process} on {self.topology.node_of(process)} is not responding"
            for process, report in reports.items()
            if not report or int(report[0]) < newest
        )
