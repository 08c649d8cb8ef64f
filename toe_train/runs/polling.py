"""When the processes tell each other what only one of them may know: a signal, an hour that has come."""

from __future__ import annotations

import time

from toe_train.runs.processes import Processes

SECONDS = 5.0  # between two looks, about
MOST_STEPS = 50


class Polling:
    """Chooses the steps after which all processes look, the same in each: often enough in seconds, seldom in steps.

    The first step of an epoch is one; from then on the slowest process's time for a step decides.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.restart()

    def restart(self) -> None:
        """An epoch begins."""
        self._left, self._interval, self._since = 1, 1, time.monotonic()

    def due(self) -> bool:
        """Called once after each step: whether the processes look now."""
        self._left -= 1
        return self._left == 0

    def soon(self) -> None:
        """They look again after the next step."""
        self._left = self._interval = 1

    def largest(self, *values: float) -> list[float]:
        """The largest of each of `values` over all processes; sets when they look next."""
        took = time.monotonic() - self._since
        slowest, *found = self._processes.largest([took, *values])
        self._interval = min(max(1, int(SECONDS * self._interval / max(slowest, 1e-9))), MOST_STEPS)
        self._left, self._since = self._interval, time.monotonic()
        return found
