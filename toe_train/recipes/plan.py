"""The epochs of a run as data: what each one trains with, known before anything is built."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import groupby

from toe_train.recipes.schema import RunConfig


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains with.

    Attributes:
        epoch: from 0.
        stage: stage of Token Expansion; 0 where all tokens are used, before the first boundary or without ToE.
        image_size: side in pixels of what the model sees; images are loaded at `model.image_size`.
        rand_augment: timm's string, None for none.
        micro_batch: images per process and forward pass, at most.
        mix_group: images that share one mixing ratio and pair up.
    """

    epoch: int
    stage: int
    image_size: int
    rand_augment: str | None
    micro_batch: int
    mix_group: int

    @property
    def curriculum(self) -> tuple[int, str | None, int, int]:
        """What a trainer is built with; epochs that differ in it have trainers of their own."""
        return self.image_size, self.rand_augment, self.micro_batch, self.mix_group


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
    plans = []
    for epoch in range(config.epochs):
        stage = schedule.stage(epoch) if schedule else 0
        if config.curriculum is None:
            section = config.augment
            trained = (config.model.image_size, section.rand_augment, config.train.max_micro_batch, section.mix_group)
        else:
            row = bisect_right(config.curriculum.stage_epochs, epoch) - 1
            batch = config.curriculum.micro_batches[row]
            trained = (config.curriculum.image_sizes[row], config.curriculum.rand_augments[row], batch, batch)
        plans.append(EpochPlan(epoch, stage, *trained))
    return tuple(plans)


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
