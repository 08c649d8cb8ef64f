"""Stages of equal compute: EfficientTrain++'s epochs for each image size, and their place in the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """A place in the learning-rate schedule: `done` of `total` epochs, of which the first `warmup` rise."""

    done: int
    total: int
    warmup: int


@dataclass(frozen=True)
class EqualStage:
    """A stage of `epochs` epochs from `first` on, in which the schedule goes on from `clock`."""

    first: int
    epochs: int
    clock: Clock


def equal_compute_stages(budget: int, image_sizes: Sequence[int], warmup: int) -> tuple[EqualStage, ...]:
    """Stages that cost the same, as smaller images make for more epochs (arXiv 2405.08768; spec.md 4.5).

    An epoch of images of side B costs (B / S)^2 of one at the last size, S, so that a stage of the n has about
    budget / n * (S / B)^2 epochs. The rounding is the released code's: a stage has a schedule of int(budget * (S/B)^2)
    epochs all for itself, stands in it where the one before came to (rounded), and leaves it when i/n are done. 200
    epochs in the ten stages of the published recipe come to 469.

    Args:
        budget: epochs at the last size that the run's compute is worth.
        image_sizes: side in pixels, for each stage.
        warmup: how many of `budget` the learning rate rises.

    Raises:
        ValueError: a stage is left without an epoch.
    """
    stages: list[EqualStage] = []
    first, end, previous = 0, 0, image_sizes[0]
    for number, size in enumerate(image_sizes, start=1):
        smaller = image_sizes[-1] ** 2 / size**2
        total = int(budget * smaller)
        begin = round(end * previous**2 / size**2)
        end, previous = int(total / len(image_sizes) * number), size
        if end <= begin:
            raise ValueError(f"budget_epochs={budget} leaves none for stage {number}, of {size} pixels; use more")
        stages.append(EqualStage(first, end - begin, Clock(begin, total, int(warmup * smaller))))
        first += end - begin
    return tuple(stages)
