"""Epoch after epoch in one pass, so that no loader runs dry between them while it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from toe_train.data import SampleKey, TrainBatchSampler


class Endless:
    """A training sampler's micro-batches, from epoch 0 on without an end."""

    def __init__(self, sampler: TrainBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for epoch in count():
            self.sampler.set_epoch(epoch)
            yield from self.sampler
