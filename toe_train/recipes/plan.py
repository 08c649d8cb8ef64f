"""The epochs of a run as data: what each one trains with, known before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from toe_train.recipes.schema import RunConfig


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch trains with.

    Attributes:
        epoch: from 0.
        stage: stage of Token Expansion; 0 where all tokens are used, before the first boundary or without ToE.
    """

    epoch: int
    stage: int


@dataclass(frozen=True)
class Segment:
    """Consecutive epochs `first ... last` (both included) that train alike."""

    first: int
    last: int
    stage: int

    @property
    def epochs(self) -> int:
        """How many epochs it lasts."""
        return self.last - self.first + 1


def plan_epochs(config: RunConfig) -> tuple[EpochPlan, ...]:
    """One record per epoch of the run."""
    schedule = config.expansion.schedule() if config.expansion else None
    return tuple(EpochPlan(epoch, schedule.stage(epoch) if schedule else 0) for epoch in range(config.epochs))


def segments(plans: tuple[EpochPlan, ...]) -> tuple[Segment, ...]:
    """The plan as runs of equal epochs, in order."""
    found = []
    for stage, group in groupby(plans, key=lambda plan: plan.stage):
        alike = list(group)
        found.append(Segment(alike[0].epoch, alike[-1].epoch, stage))
    return tuple(found)
