"""Validation: how good the plain model and its average are, all tokens seen, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from toe_train.errors import RunFailed
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task
from toe_train.training.compiling import uncompiled
from toe_train.training.resolution import BothSizes

Record = dict[str, Any]


class Evaluation:
    """Scores of a trainer's models, by their names in an epoch's record.

    Those are "val_<score>" of the raw model; of the task's headline "ema_<headline>" of the averaged one too, and
    "val_<headline>_full" of the raw one at the image size that the run ends with.

    Args:
        task: that scores.
        batches: this process's share of the evaluation images.
        processes: that score together.
        autocast: of the forward pass.
        sizes: where the model is for smaller images than the run ends with.
        best_name: name of the score that the best checkpoint is chosen by.

    Attributes:
        best_name: the same; of the score at full size where the model is for smaller images.
    """

    def __init__(
        self,
        task: Task,
        batches: Any,
        processes: Processes,
        autocast: torch.autocast,
        sizes: BothSizes | None,
        best_name: str,
    ) -> None:
        self._task = task
        self._batches = batches
        self._processes = processes
        self._autocast = autocast
        self.sizes = sizes
        self._full_name = f"val_{task.headline}_full"
        self._averaged_name = f"ema_{task.headline}"
        assert best_name in self.none(), best_name
        # Averaged weights are not evaluated at full size, and scores at another size do not compare.
        self.best_name = best_name if sizes is None else f"{best_name}_full"

    def none(self) -> Record:
        """The scores of an epoch that is not evaluated."""
        names = [*(f"val_{score}" for score in self._task.scores), self._full_name, self._averaged_name]
        return dict.fromkeys(names)

    def scores(self, model: nn.Module, averaged: nn.Module | None, poll: Callable[[], None]) -> Record:
        """The scores of an epoch.

        Args:
            model: the raw one.
            averaged: None where the run averages no weights.
            poll: see `Task.score`.

        Raises:
            RunFailed: the device's memory does not hold an evaluation batch.
        """
        models = {"val": model} if averaged is None else {"val": model, "ema": averaged}
        for one in models.values():
            self._processes.share_buffers(one)
        if self.sizes is not None:
            models = {name: self.sizes.at_own_size(one) for name, one in models.items()}
            models["full"] = self.sizes.at_full_size(model)
        try:
            with uncompiled():
                found = self._task.score(models, self._batches, self._processes, self._autocast, poll)
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"out of device memory in the evaluation ({str(error).split('. ')[0]})",
                then="start {command} again with half the evaluate.batch",
            ) from None
        headline = self._task.headline
        record: Record = {f"val_{score}": found[f"val_{score}"] for score in self._task.scores}
        record[self._full_name] = found[f"{'full' if self.sizes is not None else 'val'}_{headline}"]
        record[self._averaged_name] = found.get(f"ema_{headline}")
        return record

    def better(self, record: Record, best: float) -> float:
        """The best so far with an epoch's record: more is better, and what cannot be compared is not."""
        value = record.get(self.best_name)
        return best if value is None else max(best, self._signed(value))

    def score_of(self, best: float) -> float:
        """The score that `better` made of, as a record has it."""
        return self._signed(best)

    def _signed(self, value: float) -> float:
        """A score as what is more where it is better, and back."""
        return float(value) if self._task.higher_is_better else -float(value)
