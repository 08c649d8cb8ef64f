"""Token Expansion in Lightning's Trainer."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from toe_train.expansion import TokenExpansion
from toe_train.integrations.stages import Stages


class LightningCallback(Callback):
    """Tells a token expansion the epoch: `Trainer(..., callbacks=[LightningCallback(expansion)])`.

    A training that is resumed goes on in the stage of its epoch. What Lightning saves is the plain model.

    Args:
        expansion: attached to the model that the LightningModule holds.

    Raises:
        ValueError: when training begins, and the expansion is not attached to the model.
    """

    def __init__(self, expansion: TokenExpansion) -> None:
        self._expansion = expansion
        self._stages = Stages(expansion)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the model, enters the stage, and says which stages are to come."""
        self._stages = Stages(self._expansion)
        self._stages.require_attached(pl_module)
        # Here too: a training that is resumed within an epoch does not begin that epoch.
        self._stages.enter(trainer.current_epoch)
        last = trainer.max_epochs
        if trainer.is_global_zero and last is not None and last > 0:
            print(self._stages.planned(trainer.current_epoch, last - 1), flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enters the stage of the epoch."""
        self._stages.enter(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which stages ran."""
        if trainer.is_global_zero:
            print(self._stages.done(), flush=True)
