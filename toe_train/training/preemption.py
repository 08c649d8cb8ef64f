"""Being asked to stop: SIGTERM and SIGUSR1, as schedulers send them before they take a machine back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_REQUEST_SECONDS = 3.0


class StopRequest:
    """Remembers that a signal asked this process to stop; the training loop looks at it at its next poll.

    A second signal ends the process at once, without saving; within a few seconds of the first it is taken for the same
    request, since schedulers and launchers often send one to a group and again to each process.

    Attributes:
        signal: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the two signals over for the block."""
        former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            os._exit(128 + number)
