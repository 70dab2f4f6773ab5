"""When the queue is asked again, and which jobs its answers end."""

import time
from collections.abc import Iterable, Mapping

from jaxway.slurm.outage import RETRY_INTERVAL_S
from jaxway.slurm.queue import ENDED, LOST, LOST_AFTER_S, SlurmJob

POLL_SHARE = 0.1  # of the time since a job has last changed its state
MIN_POLL_S, MAX_POLL_S = 1, 15


class Polling:
    """The jobs of a run, as the queue's answers show them."""

    def __init__(self) -> None:
        self._changed = 0.0  # when a job has last changed its state
        self._answered = True
        self._states: dict[str, str] = {}  # last seen, by name
        self._missing_since: dict[str, float] = {}

    def interval(self) -> float:
        """Seconds until the next query. Short for jobs that have just begun: a training of hours
        can wait longer."""
        if not self._answered:
            return RETRY_INTERVAL_S
        return min(MAX_POLL_S, max(MIN_POLL_S, POLL_SHARE * (time.monotonic() - self._changed)))

    def submitted(self) -> None:
        """There is a new job."""
        self._changed = time.monotonic()

    def no_answer(self) -> None:
        """A query has failed: nothing follows about any job."""
        self._answered = False
        self._missing_since.clear()

    def ends(self, names: Iterable[str], found: Mapping[str, SlurmJob]) -> dict[str, str]:
        """States of the jobs of these names that have ended, by the answer to a query."""
        self._answered, now = True, time.monotonic()
        ended = {}
        for name in names:
            if job := found.get(name):
                self._missing_since.pop(name, None)
                state = job.state
            elif now - self._missing_since.setdefault(name, now) > LOST_AFTER_S:
                state = LOST
            else:
                continue
            if state != self._states.get(name):
                self._states[name], self._changed = state, now
            if state in ENDED:
                ended[name] = state
        return ended

    def state(self, name: str, default: str = "PENDING") -> str:
        """The last one that was seen."""
        return self._states.get(name, default)
