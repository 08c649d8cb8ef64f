"""Token Expansion in `transformers.Trainer`."""

from __future__ import annotations

import math
import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toe_train.expansion import TokenExpansion
from toe_train.integrations.stages import Stages

_COUNT = "token_expansion"  # in the Trainer's state


class HuggingFaceCallback(TrainerCallback):
    """Tells a token expansion the epoch: `Trainer(..., callbacks=[HuggingFaceCallback(expansion)])`.

    A training that is resumed goes on in the stage of its epoch. What the Trainer saves is the plain model.

    Where the data has no length, an epoch is a pass through it, and the Trainer counts passes from 0 again whenever it
    resumes; so the callback keeps its own count in the Trainer's state (`stateful_callbacks`). A checkpoint without it
    goes on in the pass that the Trainer's count says, and a line says so.

    Args:
        expansion: attached to the model that the Trainer is given.

    Raises:
        ValueError: when training begins, and the expansion is not attached to the model.
    """

    def __init__(self, expansion: TokenExpansion) -> None:
        self._expansion = expansion
        self._stages = Stages(expansion)
        self._epoch = 0  # that begins next

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model, and says which stages are to come."""
        self._stages = Stages(self._expansion)
        self._stages.require_attached(kwargs["model"])
        self._epoch, known = _epoch(state), True
        if _is_endless(state) and state.global_step:
            kept = _kept(state)
            self._epoch, known = (self._epoch, False) if kept is None else (kept, True)
        if state.is_world_process_zero:
            last = None if _is_endless(state) else math.ceil(state.num_train_epochs) - 1
            print(self._stages.planned(self._epoch, last), flush=True)
            if not known:
                print(
                    f"token expansion: note: the checkpoint keeps no count of passes through the data, which has no "
                    f"length; it goes on in epoch {self._epoch}, which is wrong if it was resumed before",
                    flush=True,
                )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enters the stage: that of the state's epoch, then one after another."""
        if _is_endless(state):
            state.stateful_callbacks = {**(state.stateful_callbacks or {}), _COUNT: {"epoch": self._epoch}}
        self._stages.enter(self._epoch)
        self._epoch += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says which stages ran."""
        if state.is_world_process_zero:
            print(self._stages.done(), flush=True)


def _epoch(state: TrainerState) -> int:
    """The epoch, counted from 0, in which a state goes on; a whole one has been read back from decimals."""
    return math.floor((state.epoch or 0) + 1e-6)


def _is_endless(state: TrainerState) -> bool:
    """Whether the data has no length: `max_steps` alone ends the training, and the Trainer sets this number."""
    return state.num_train_epochs >= sys.maxsize


def _kept(state: TrainerState) -> int | None:
    """The epoch in which a checkpoint was saved, by the count of this callback."""
    kept: Any = (state.stateful_callbacks or {}).get(_COUNT)
    return kept["epoch"] if isinstance(kept, dict) else None
