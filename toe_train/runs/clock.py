"""Where an epoch's time goes: waiting for data, computing, and all together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")


class EpochClock:
    """Times one epoch. No call waits for the device but `read`.

    `compute` blocks are forward, loss, backward, optimiser and averaging, which is what the paper's timer covers (its
    engine leaves out loading and mixing); the rest of the epoch's wall time is loading, mixing and logging. `before` is
    what `read` gave when the epoch was broken off.
    """

    def __init__(self, device: torch.device, before: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        self.device = device
        elapsed, self.data_wait, self._compute = before
        self.started = time.perf_counter() - elapsed
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same items, with the time spent waiting for each counted as data wait."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.data_wait += time.perf_counter() - begin
            yield item

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Counts the block's time on the device."""
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            self._compute += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the epoch began."""
        return time.perf_counter() - self.started

    def read(self) -> tuple[float, float, float]:
        """Waits for the device; seconds of the whole epoch, of waiting for data, and of computing."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._compute += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        return self.elapsed, self.data_wait, self._compute
