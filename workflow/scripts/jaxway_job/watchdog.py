"""What a training watches besides its steps: its time, signals, and whether all processes live."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from jaxway_job import training_state
from jaxway_job.runtime import Place

GO_ON, SAVE, STOP = 0, 1, 2  # wishes of a process; the greatest of all processes is done
MARGIN = 30  # seconds before the deadline that are left to end the job
GRACE = 5  # seconds until all processes have noticed that a step does not end


class Watch:
    """``folder`` is the training's state, in which processes find each other's last words.

    ``save_minutes``: time between checkpoints. ``hang_minutes``: a step that takes longer is never
    going to end, since a process is missing or does not answer.
    """

    def __init__(self, folder: Path, place: Place, save_minutes: float, hang_minutes: float):
        self.words, self.place = folder / "hung", place
        self.save_seconds, self.hang_seconds = 60 * save_minutes, 60 * hang_minutes
        self.deadline = training_state.deadline()
        self.signal = ""
        self.step, self.alive, self.saved = 0, time.monotonic(), time.monotonic()
        word = self.words / str(place.process)
        word.unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, number: int, _: object) -> None:
        """Remember a signal: the step that runs ends first."""
        self.signal = signal.Signals(number).name

    def wish(self, step_seconds: float, save_seconds: float) -> int:
        """What this process wants to be done after the next step.

        It stops while there is time to end the steps that are under way and to save.
        """
        needed = 3 * step_seconds + 2 * save_seconds + MARGIN
        if self.signal or (self.deadline and time.time() + needed > self.deadline):
            return STOP
        return SAVE if time.monotonic() - self.saved > self.save_seconds else GO_ON

    def why(self) -> str:
        """Reason to stop."""
        return self.signal or "the time of this job is nearly over"

    def begin(self, step: int) -> None:
        """Note that a step, or what comes after the last one, begins now."""
        self.step, self.alive = step, time.monotonic()

    def start(self) -> None:
        """Look from now on, in a thread, whether steps end."""
        self.alive = time.monotonic()
        threading.Thread(target=self.look, daemon=True).start()

    def look(self) -> None:
        while True:
            time.sleep(min(1, self.hang_seconds / 4))
            if time.monotonic() - self.alive > self.hang_seconds:
                self.give_up(f"step {self.step} has not ended for {self.hang_seconds / 60:g} min")

    def give_up(self, problem: str) -> NoReturn:
        """End this process, and say which others have not come as far or say nothing at all."""
        mine = self.words / str(self.place.process)
        part = mine.with_suffix(".part")
        with suppress(OSError):  # a full disk: then it is silent for the others
            self.words.mkdir(exist_ok=True)
            part.write_text(f"{self.step} {socket.gethostname()}")
            part.replace(mine)
        time.sleep(GRACE)
        said = {}
        for process in range(self.place.processes):
            file = self.words / str(process)
            said[process] = file.read_text().split() if file.exists() else None
        missing = [
            f"process {process} " + (f"on {word[1]} is at step {word[0]}" if word else "is silent")
            for process, word in said.items()
            if not word or int(word[0]) < max(int(w[0]) for w in said.values() if w)
        ]
        blame = ", ".join(missing) or "all processes are there: a device or the network is stuck"
        print(f"{Path(sys.argv[0]).name}: {problem}; {blame}", file=sys.stderr, flush=True)
        os._exit(1)
