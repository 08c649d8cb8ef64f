"""Being asked to stop: SIGTERM and SIGUSR1, as schedulers send them before they take a machine back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Remembers that a signal asked this process to stop; the training loop looks at it at its next poll.

    A second signal ends the process at once, without saving.

    Attributes:
        signal: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0

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
        if self.signal:
            os._exit(128 + number)
        self.signal = number
