"""What the callbacks share: entering the stage of an epoch, and saying which stages run."""

from __future__ import annotations

from torch import nn

from toe_train.expansion import TokenExpansion


class Stages:
    """The stages of a token expansion, as a training goes through them.

    Args:
        expansion: attached to the model.
    """

    def __init__(self, expansion: TokenExpansion) -> None:
        self._expansion = expansion
        self._ran: dict[int, list[int]] = {}  # stage -> its epochs

    def require_attached(self, model: nn.Module) -> None:
        """Raise ValueError unless the expansion is a part of the model that is to be trained."""
        if all(module is not self._expansion for module in model.modules()):
            raise ValueError(
                f"the token expansion of this callback is not attached to the {type(model).__name__} that is trained: "
                "call toe_train.attach(model, expansion) before, with the same expansion"
            )

    def enter(self, epoch: int) -> None:
        """Enter the stage of an epoch, counted from 0."""
        self._expansion.set_epoch(epoch)
        epochs = self._ran.setdefault(self._expansion.stage, [])
        if epoch not in epochs:
            epochs.append(epoch)

    def planned(self, first: int, last: int) -> str:
        """A line on the stages of the epochs `first` to `last`, both counted."""
        schedule = self._expansion.schedule
        epochs: dict[int, list[int]] = {}
        for epoch in range(first, last + 1):
            epochs.setdefault(schedule.stage(epoch), []).append(epoch)
        line = f"token expansion: {self._described(epochs) or 'no epoch to train'}"
        if never := [stage for stage in range(1, schedule.num_stages + 1) if schedule.stage_epochs[stage - 1] > last]:
            line += f"; never reached: {', '.join(f'stage {stage}' for stage in never)}"
        return line

    def done(self) -> str:
        """A line on the stages that ran."""
        return f"token expansion ran: {self._described(self._ran) or 'no epoch'}"

    def _described(self, epochs: dict[int, list[int]]) -> str:
        return ", ".join(f"stage {stage} ({self._share(stage)}) in {_span(those)}" for stage, those in epochs.items())

    def _share(self, stage: int) -> str:
        schedule = self._expansion.schedule
        return "all tokens" if schedule.is_dense(stage) else f"{schedule.keep_rates[stage - 1]:g} of them"


def _span(epochs: list[int]) -> str:
    return f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
