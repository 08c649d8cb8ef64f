"""The epochs of a run as data: what each one trains with, known before anything is built."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from toe_train.recipes.curriculum import Clock, equal_compute_stages
from toe_train.recipes.schema import RunConfig


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains with.

    Attributes:
        epoch: from 0.
        stage: stage of Token Expansion; 0 where all tokens are used, before the first boundary or without ToE.
        clock: where its first step stands in the schedule of learning rates.
        image_size: side in pixels of what the model sees.
        loaded_size: side in pixels of what the loader gives; where it is larger, a crop of frequencies follows.
        rand_augment: timm's string, None for none.
        micro_batch: images per process and forward pass, at most.
        mix_group: images that share one mixing ratio and pair up.
    """

    epoch: int
    stage: int
    clock: Clock
    image_size: int
    loaded_size: int
    rand_augment: str | None
    micro_batch: int
    mix_group: int

    @property
    def curriculum(self) -> tuple[int, int, str | None, int, int]:
        """What a trainer is built with; epochs that differ in it have trainers of their own."""
        return self.image_size, self.loaded_size, self.rand_augment, self.micro_batch, self.mix_group


@dataclass(frozen=True)
class Segment:
    """Consecutive epochs `first ... last` (both included) that train alike, as `plan` says for the first."""

    plan: EpochPlan
    last: int

    @property
    def first(self) -> int:
        """Its first epoch."""
        return self.plan.epoch

    @property
    def stage(self) -> int:
        """Its stage of Token Expansion."""
        return self.plan.stage

    @property
    def epochs(self) -> int:
        """How many epochs it lasts."""
        return self.last - self.first + 1


def plan_epochs(config: RunConfig) -> tuple[EpochPlan, ...]:
    """One record per epoch of the run."""
    schedule = config.expansion.schedule() if config.expansion else None
    rows = _rows(config)
    starts = [row.epoch for row in rows]
    plans = []
    for epoch in range(config.epochs):
        row = rows[bisect_right(starts, epoch) - 1]
        clock = replace(row.clock, done=row.clock.done + epoch - row.epoch)
        plans.append(replace(row, epoch=epoch, stage=schedule.stage(epoch) if schedule else 0, clock=clock))
    return tuple(plans)


def _rows(config: RunConfig) -> list[EpochPlan]:
    """The first epoch of each stage of the curriculum; epoch 0 where there is none."""
    section, augment, size = config.curriculum, config.augment, config.model.image_size
    warmup = config.schedule.warmup_epochs
    if section is None:
        given = augment.rand_augment, config.train.max_micro_batch, augment.mix_group
        return [EpochPlan(0, 0, Clock(0, config.epochs, warmup), size, size, *given)]
    if section.budget_epochs is None:
        starts = [(first, Clock(first, config.epochs, warmup)) for first in section.stage_epochs or ()]
    else:
        stages = equal_compute_stages(section.budget_epochs, section.image_sizes, warmup)
        starts = [(stage.first, stage.clock) for stage in stages]
    rows = zip(starts, section.image_sizes, section.rand_augments, section.micro_batches, strict=True)
    most = config.train.max_micro_batch
    in_loader = section.downsampling == "lanczos"
    return [
        EpochPlan(first, 0, clock, image_size, image_size if in_loader else size, rand_augment, min(batch, most), batch)
        for (first, clock), image_size, rand_augment, batch in rows
    ]


def curriculum_stages(plans: Sequence[EpochPlan]) -> list[EpochPlan]:
    """The first epoch of each stage of the curriculum that the run reaches; epoch 0 where there is none."""
    return [next(alike) for _, alike in groupby(plans, key=lambda plan: plan.curriculum)]


def config_at(config: RunConfig, plan: EpochPlan) -> RunConfig:
    """The configuration with the augmentation and micro-batches of `plan`'s epoch in their sections."""
    augment = {"rand_augment": plan.rand_augment, "mix_group": plan.mix_group}
    return config.model_copy(
        update={
            "augment": config.augment.model_copy(update=augment),
            "train": config.train.model_copy(update={"max_micro_batch": plan.micro_batch}),
        }
    )


def segments(plans: tuple[EpochPlan, ...]) -> tuple[Segment, ...]:
    """The plan as runs of equal epochs, in order."""
    found = []
    for _, group in groupby(plans, key=lambda plan: (plan.stage, plan.curriculum)):
        alike = list(group)
        found.append(Segment(alike[0], alike[-1].epoch))
    return tuple(found)
