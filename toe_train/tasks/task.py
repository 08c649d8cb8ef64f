"""What a run learns: the interface of all tasks. The loop and the step know none of them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from toe_train import data
from toe_train.runs.processes import Processes


class Task(ABC):
    """What a run learns, with a model and a split of the global batch; without state that a checkpoint would need.

    Attributes:
        scores: names of what `score` finds of a model.
        headline: the score of them that tells which of two models is better.
        higher_is_better: how it tells.
        shown: what a person reads of an epoch's scores, as (words, name in the epoch's record).
    """

    scores: tuple[str, ...]
    headline: str
    higher_is_better = True
    shown: tuple[tuple[str, str], ...]

    def train_set(
        self, images: data.ImageSource, transform: Any, seed: int, skipped: data.SkippedImages | None
    ) -> data.TrainSet:
        """Augmented training images with their targets, addressed by their place in the run."""
        return data.TrainSet(images, transform, seed, skipped)

    def eval_set(self, images: data.ImageSource, transform: Any, skipped: data.SkippedImages | None) -> data.EvalSet:
        """Evaluation images with their targets."""
        return data.EvalSet(images, transform, skipped)

    def collate(self, samples: list[Any]) -> tuple[Any, Any]:
        """A batch of the training set's samples: images and targets, both with `to`."""
        return data.collate(samples)

    def eval_collate(self, samples: list[Any]) -> Any:
        """A batch of the evaluation set's samples, as `score` takes it."""
        return default_collate(samples)

    @abstractmethod
    def example_targets(self, batch: int) -> Any:
        """Made-up targets of `batch` images, in the form in which `collate` gives them."""

    def mix(self, images: Tensor, targets: Any, epoch: int, step: int, rank: int, micro: int) -> tuple[Tensor, Any]:
        """What the model sees and what the loss compares with, of micro-batch `micro` of a step.

        It depends on the place in the run alone, and reads nothing back from the device.

        Args:
            images: (b, C, H, W) on the device, its own to change.
            targets: as `collate` gives them, there.
            epoch: from 0.
            step: in the epoch.
            rank: of the process.
            micro: in the step.
        """
        return images, targets

    @abstractmethod
    def loss(self, output: Any, targets: Any) -> Tensor:
        """The mean loss over a micro-batch, a scalar, in float32, of what the model and `mix` gave."""

    @abstractmethod
    def score(
        self,
        models: Mapping[str, nn.Module],
        batches: Any,
        processes: Processes,
        autocast: AbstractContextManager[None],
        poll: Callable[[], None],
    ) -> dict[str, float]:
        """How good models are, in one pass over the evaluation images.

        Args:
            models: by name; each is called with a batch's images in eval mode, and its mode is put back.
            batches: this process's share of them.
            processes: that count together.
            autocast: reusable context of the forward pass.
            poll: called before each batch, equally often in every process; what it raises ends the evaluation.

        Returns:
            For each model and each of `scores`, "<model>_<score>".
        """
