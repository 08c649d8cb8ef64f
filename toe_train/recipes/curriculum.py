"""Curricula: their section of the YAML file, what a stage is, and stages of equal compute (EfficientTrain++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import model_validator

from toe_train.recipes.fields import INCIDENTAL, Integer, PositiveInteger, Section, Size
from toe_train.recipes.shares import Share


class CurriculumConfig(Section):
    """Stages of growing images and augmentation (EfficientTrain); beside the stages of Token Expansion."""

    image_sizes: tuple[PositiveInteger, ...]  # what the model sees, even; the last is model.image_size
    rand_augments: tuple[str | None, ...]  # each stage's augment.rand_augment
    # Images that share a mixing ratio, each stage's augment.mix_group, and, where train.max_micro_batch is not smaller,
    # per process and forward pass; the global batch stays.
    micro_batches: tuple[PositiveInteger, ...]
    # First epoch of each stage, the first one's 0; or null, and stages of equal compute in its place.
    stage_epochs: tuple[Integer, ...] | None = None
    # In place of stage_epochs, as shares of the run's epochs, see `first_epochs`.
    stage_shares: Annotated[tuple[Share, ...] | None, INCIDENTAL] = None
    # EfficientTrain++: what all stages together are worth in epochs at full size, see `equal_compute_stages`. `epochs`
    # is then their sum, and the schedule's warm-up is counted in epochs at full size too.
    budget_epochs: PositiveInteger | None = None
    # How images become smaller. low_frequency: on the device, by a crop of their spectrum (EfficientTrain); lanczos: in
    # the loader, after rand_augment (EfficientTrain++).
    downsampling: Literal["low_frequency", "lanczos"] = "low_frequency"
    # Epochs at full size of the plain training that predicted speed-ups compare with; null: as many as `epochs`.
    baseline_epochs: PositiveInteger | None = None

    @model_validator(mode="after")
    def _legal(self) -> CurriculumConfig:
        if (self.stage_epochs is None) == (self.budget_epochs is None):
            raise ValueError("give one of stage_epochs (or stage_shares) and budget_epochs, and null for the other")
        count = len(self.image_sizes)
        for name in ("rand_augments", "micro_batches", "stage_epochs"):
            if (own := len(getattr(self, name) or self.image_sizes)) != count:
                raise ValueError(f"{name} has {own} entries and image_sizes {count}: every stage needs one of each")
        if not count:
            raise ValueError("image_sizes=[] must hold the size of at least one stage")
        if (first := self.stage_epochs) and (first[0] != 0 or list(first) != sorted(set(first))):
            raise ValueError(f"stage_epochs={list(first)} must begin with 0 and rise from stage to stage")
        if odd := [value for value in (*self.image_sizes, *self.micro_batches) if value % 2]:
            raise ValueError(f"image_sizes and micro_batches must be even, and {odd[0]} is not; use {odd[0] + 1}")
        if list(self.image_sizes) != sorted(self.image_sizes):
            raise ValueError(f"image_sizes={list(self.image_sizes)} must not fall from stage to stage")
        return self


@dataclass(frozen=True)
class CurriculumStage:
    """What a trainer is built with; epochs that differ in it have trainers of their own.

    Attributes:
        image_size: side in pixels of what the model sees.
        loaded_size: side in pixels of what the loader gives; where it is larger, a crop of frequencies follows.
        rand_augment: timm's string, None for none.
        micro_batch: images per process and forward pass, at most.
        mix_group: images that share one mixing ratio and pair up.
        segment: what the method builds a trainer for, see `MethodSection.segment`.
        frozen: whether the head alone trains.
    """

    image_size: Size
    loaded_size: Size
    rand_augment: str | None
    micro_batch: int
    mix_group: int
    segment: int = 0
    frozen: bool = False


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
    """Stages that cost the same, as smaller images make for more epochs (docs/fidelity.md, "EfficientTrain++").

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
