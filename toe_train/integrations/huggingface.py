"""Token Expansion in `transformers.Trainer`."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toe_train.expansion import TokenExpansion
from toe_train.integrations.stages import Stages


class HuggingFaceCallback(TrainerCallback):
    """Tells a token expansion the epoch: `Trainer(..., callbacks=[HuggingFaceCallback(expansion)])`.

    A training that is resumed goes on in the stage of its epoch. What the Trainer saves is the plain model.

    Args:
        expansion: attached to the model that the Trainer is given.

    Raises:
        ValueError: when training begins, and the expansion is not attached to the model.
    """

    def __init__(self, expansion: TokenExpansion) -> None:
        self._expansion = expansion
        self._stages = Stages(expansion)
        self._epoch: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model, and says which stages are to come."""
        self._stages = Stages(self._expansion)
        self._stages.require_attached(kwargs["model"])
        self._epoch = None
        if state.is_world_process_zero:
            print(self._stages.planned(_epoch(state), math.ceil(state.num_train_epochs) - 1), flush=True)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enters the stage: that of the state's epoch, then one after another."""
        # `state.epoch` counts fractions, of the whole run where the data has no length.
        self._epoch = _epoch(state) if self._epoch is None else self._epoch + 1
        self._stages.enter(self._epoch)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says which stages ran."""
        if state.is_world_process_zero:
            print(self._stages.done(), flush=True)


def _epoch(state: TrainerState) -> int:
    """The epoch, counted from 0, in which a state goes on; a whole one has been read back from decimals."""
    return math.floor((state.epoch or 0) + 1e-6)
