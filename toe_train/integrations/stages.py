"""What the callbacks share: entering the stage of an epoch, and saying which stages run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from toe_train.expansion import TokenExpansion


class Stages:
    """The stages of a token expansion, as a training goes through them.

    Args:
        expansion: attached to the model.
    """

    def __init__(self, expansion: TokenExpansion) -> None:
        self._expansion = expansion
        self._ran: dict[int, tuple[int, int]] = {}  # stage -> its first and last epoch

    def require_attached(self, model: nn.Module) -> None:
        """Raise ValueError unless the expansion is a part of the model that is to be trained."""
        if all(module is not self._expansion for module in model.modules()):
            raise ValueError(
                f"the token expansion of this callback is not attached to the {type(model).__name__} that is trained: "
                "call toe_train.attach(model, expansion) before, with the same expansion"
            )

    def enter(self, epoch: int) -> None:
        """Enter the stage of an epoch, counted from 0; again within it changes nothing."""
        self._expansion.set_epoch(epoch)
        first, _ = self._ran.get(self._expansion.stage, (epoch, epoch))
        self._ran[self._expansion.stage] = first, epoch

    def planned(self, first: int, last: int | None) -> str:
        """A line on the stages of the epochs `first` to `last`, both counted; None has no fixed end."""
        schedule = self._expansion.schedule
        begins = (0, *schedule.stage_epochs)
        ends = (*(begin - 1 for begin in schedule.stage_epochs), last)
        spans: dict[int, tuple[int, int | None]] = {}
        for stage, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            begin = max(begin, first)
            if last is not None and end is not None:
                end = min(end, last)
            if end is None or begin <= end:
                spans[stage] = begin, end
        line = f"token expansion: {self._described(spans) or 'no epoch to train'}"
        never = [stage for stage in range(1, schedule.num_stages + 1) if last is not None and begins[stage] > last]
        if never:
            line += f"; never reached: {', '.join(f'stage {stage}' for stage in never)}"
        return line

    def done(self) -> str:
        """A line on the stages that ran."""
        return f"token expansion ran: {self._described(self._ran) or 'no epoch'}"

    def _described(self, spans: Mapping[int, tuple[int, int | None]]) -> str:
        return ", ".join(f"stage {stage} ({self._share(stage)}) in {_span(*span)}" for stage, span in spans.items())

    def _share(self, stage: int) -> str:
        schedule = self._expansion.schedule
        return "all tokens" if schedule.is_dense(stage) else f"{schedule.keep_rates[stage - 1]:g} of them"


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"epochs from {first} on (no fixed end)"
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"
