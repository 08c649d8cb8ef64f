"""What happens when: the plan of the epochs, and how often a run logs, evaluates and saves."""

from __future__ import annotations

import time
from dataclasses import dataclass

from toe_train.recipes import CurriculumStage, EpochPlan
from toe_train.training.optim import Schedule


@dataclass
class Cadence:
    """The plan of a run, of which one trainer does the epochs of one stage of the curriculum.

    Attributes:
        plans: of all epochs of the run.
        curriculum: of the epochs that the trainer is for; others need another.
        schedule: of learning rates.
        log_every: steps.
        evaluate_every: epochs.
        save_every: epochs.
        save_every_steps: within an epoch too; None for never.
        save_every_seconds: within an epoch too.
    """

    plans: tuple[EpochPlan, ...]
    curriculum: CurriculumStage
    schedule: Schedule
    log_every: int
    evaluate_every: int
    save_every: int
    save_every_steps: int | None
    save_every_seconds: float

    def is_for(self, epoch: int) -> bool:
        """Whether there is such an epoch, and the trainer was built for it."""
        return epoch < len(self.plans) and self.plans[epoch].curriculum == self.curriculum

    def is_last(self, epoch: int) -> bool:
        """Whether the run ends with it."""
        return epoch + 1 == len(self.plans)

    def evaluates(self, epoch: int) -> bool:
        """Whether an evaluation follows it; always the last one."""
        return (epoch + 1) % self.evaluate_every == 0 or self.is_last(epoch)

    def saves(self, epoch: int) -> bool:
        """Whether a checkpoint follows it: by its number, as the last of its stage, or as the last one."""
        if (epoch + 1) % self.save_every == 0 or self.is_last(epoch):
            return True
        now, following = self.plans[epoch], self.plans[epoch + 1]
        return (following.stage, following.curriculum) != (now.stage, now.curriculum)

    def logs(self, step: int, steps: int) -> bool:
        """Whether a line follows the `step`-th of an epoch's steps."""
        return step % self.log_every == 0 or step == steps

    def saves_within(self, step: int) -> bool:
        """Whether a checkpoint follows the `step`-th step of an epoch."""
        return self.save_every_steps is not None and step % self.save_every_steps == 0

    def is_late(self, saved_at: float) -> bool:
        """Whether the last checkpoint is so long ago, by `time.monotonic`, that another is due."""
        return time.monotonic() - saved_at > self.save_every_seconds
