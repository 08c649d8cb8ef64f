"""What a trainer reads: training batches on the device, evaluation images, and what could not be read of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from toe_train.data import CleanErrors, SkippedImages, TrainBatchSampler
from toe_train.runs.processes import Processes
from toe_train.training.device_batches import DeviceBatches


@dataclass(frozen=True)
class Inputs:
    """Built once for each trainer.

    Attributes:
        sampler: chooses the epoch of the next pass over `train`.
        train: micro-batches of this process.
        val: this process's share of the evaluation images.
        skipped: images that were passed over; None where an unreadable one ends the run.
        sides: height and width in pixels of what the model sees, or of what stands for it where that varies.
        num_tokens: patch tokens N of that.
    """

    sampler: TrainBatchSampler
    train: DeviceBatches
    val: CleanErrors
    skipped: SkippedImages | None
    sides: tuple[int, int]
    num_tokens: int

    def tokens_at(self, sides: tuple[int, int]) -> int:
        """Patch tokens of an image of another height and width."""
        return self.num_tokens * math.prod(sides) // math.prod(self.sides)

    def num_skipped(self) -> int:
        """How many different images were passed over, as the main process knows it."""
        return len(self.skipped.images()) if self.skipped is not None else 0

    def require_few_skipped(self, processes: Processes) -> None:
        """Lists what was passed over; ends the run in all processes where it is more than the run may do without."""
        if self.skipped is not None:
            processes.main_only(self.skipped.require_within_limit)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around all that reads: what a loader process that is gone makes of the block is raised as WorkerGone."""
        assert isinstance(self.train.loader, CleanErrors)
        with self.train.loader.watching(), self.val.watching():
            yield

    def close(self) -> None:
        """Stops the loaders' workers."""
        self.train.close()
        self.val.close()
