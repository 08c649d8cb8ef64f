"""The epochs of a run as data: what each one trains with, known before anything is built."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from toe_train.recipes.curriculum import Clock, CurriculumStage, equal_compute_stages
from toe_train.recipes.fields import Size
from toe_train.recipes.schema import RunConfig


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains with.

    Attributes:
        epoch: from 0.
        stage: of the method that makes training cheaper, see `MethodSection.stage`; of Token Expansion, 0 where all
            tokens are used, before the first boundary or without ToE.
        clock: where its first step stands in the schedule of learning rates.
        curriculum: what its trainer is built with.
    """

    epoch: int
    stage: int
    clock: Clock
    curriculum: CurriculumStage

    @property
    def image_size(self) -> Size:
        """Side in pixels of what the model sees; for detection height and width of what is counted with."""
        return self.curriculum.image_size

    @property
    def loaded_size(self) -> Size:
        """Side in pixels of what the loader gives."""
        return self.curriculum.loaded_size

    @property
    def rand_augment(self) -> str | None:
        """timm's string, None for none."""
        return self.curriculum.rand_augment

    @property
    def micro_batch(self) -> int:
        """Images per process and forward pass, at most."""
        return self.curriculum.micro_batch

    @property
    def mix_group(self) -> int:
        """Images that share one mixing ratio and pair up."""
        return self.curriculum.mix_group

    @property
    def segment(self) -> int:
        """What the method builds a trainer for."""
        return self.curriculum.segment

    @property
    def frozen(self) -> bool:
        """Whether the head alone trains."""
        return self.curriculum.frozen


@dataclass(frozen=True)
class Stretch:
    """Consecutive epochs `first ... last` (both included) that train alike, as `plan` says for the first."""

    plan: EpochPlan
    last: int

    @property
    def first(self) -> int:
        """Its first epoch."""
        return self.plan.epoch

    @property
    def stage(self) -> int:
        """Its stage of the method."""
        return self.plan.stage

    @property
    def epochs(self) -> int:
        """How many epochs it lasts."""
        return self.last - self.first + 1


def plan_epochs(config: RunConfig) -> tuple[EpochPlan, ...]:
    """One record per epoch of the run."""
    method, rows = config.cheaper, _rows(config)
    starts = [row.epoch for row in rows]
    plans = []
    for epoch in range(config.epochs):
        row = rows[bisect_right(starts, epoch) - 1]
        clock = replace(row.clock, done=row.clock.done + epoch - row.epoch)
        frozen = epoch < config.model.frozen_epochs
        curriculum = replace(row.curriculum, segment=method.segment(epoch), frozen=frozen)
        plans.append(EpochPlan(epoch, method.stage(epoch), clock, curriculum))
    return tuple(plans)


def _rows(config: RunConfig) -> list[EpochPlan]:
    """The first epoch of each stage of the curriculum, as without a method; epoch 0 where there is none."""
    section, augment, size = config.curriculum, config.augment, config.model.image_size
    warmup, most = config.schedule.warmup_epochs, config.train.max_micro_batch
    if section is None:
        only = CurriculumStage(size, size, augment.rand_augment, most, augment.mix_group)
        return [EpochPlan(0, 0, Clock(0, config.epochs, warmup), only)]
    if section.budget_epochs is None:
        starts = [(first, Clock(first, config.epochs, warmup)) for first in section.stage_epochs or ()]
    else:
        stages = equal_compute_stages(section.budget_epochs, section.image_sizes, warmup)
        starts = [(stage.first, stage.clock) for stage in stages]
    rows = []
    for (first, clock), image_size, rand_augment, batch in zip(
        starts, section.image_sizes, section.rand_augments, section.micro_batches, strict=True
    ):
        loaded_size = image_size if section.downsampling == "lanczos" else size
        stage = CurriculumStage(image_size, loaded_size, rand_augment, min(batch, most), batch)
        rows.append(EpochPlan(first, 0, clock, stage))
    return rows


def curriculum_stages(plans: Sequence[EpochPlan]) -> list[EpochPlan]:
    """The first epoch of each stage of the curriculum that the run reaches; epoch 0 where there is none.

    A segment of the method counts as a stage too, and so do epochs that train the head alone, since they have a trainer
    of their own.
    """
    return [next(alike) for _, alike in groupby(plans, key=lambda plan: plan.curriculum)]


def config_at(config: RunConfig, plan: EpochPlan) -> RunConfig:
    """The configuration with the model, augmentation and micro-batches of `plan`'s epoch in their sections."""
    kwargs = config.cheaper.model_kwargs(plan.segment)
    augment = {"rand_augment": plan.rand_augment, "mix_group": plan.mix_group}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"kwargs": {**config.model.kwargs, **kwargs}}),
            "augment": config.augment.model_copy(update=augment),
            "train": config.train.model_copy(update={"max_micro_batch": plan.micro_batch}),
        }
    )


def stretches(plans: tuple[EpochPlan, ...]) -> tuple[Stretch, ...]:
    """The plan as runs of equal epochs, in order."""
    found = []
    for _, group in groupby(plans, key=lambda plan: (plan.stage, plan.curriculum)):
        alike = list(group)
        found.append(Stretch(alike[0], alike[-1].epoch))
    return tuple(found)
