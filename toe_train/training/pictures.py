"""What a run shows of its images, behind an interface that shows nothing by default."""

from __future__ import annotations

from collections.abc import Sequence

from toe_train.recipes import EpochPlan
from toe_train.runs.log import RunLog


class Pictures:
    """Shows something at two places of an epoch, on the main process; it draws no random numbers of the training."""

    def begin(self, plan: EpochPlan, log: RunLog) -> None:
        """The epoch begins, and the method has entered its stage."""

    def evaluated(self, plan: EpochPlan, log: RunLog) -> None:
        """The models were evaluated after the epoch."""


class SeveralPictures(Pictures):
    """All of `shown`, one after the other."""

    def __init__(self, shown: Sequence[Pictures]) -> None:
        self._shown = shown

    def begin(self, plan: EpochPlan, log: RunLog) -> None:
        for one in self._shown:
            one.begin(plan, log)

    def evaluated(self, plan: EpochPlan, log: RunLog) -> None:
        for one in self._shown:
            one.evaluated(plan, log)
