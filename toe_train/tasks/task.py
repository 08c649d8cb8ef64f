"""What a run learns: the interface of all tasks. The loop and the step know none of them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        shown: what a person reads of an epoch's scores, the most important first: words, and the name in its record.
        loss_terms: names of what the loss is made of and the log tells beside it.
    """

    scores: tuple[str, ...]
    headline: str
    higher_is_better = True
    shown: tuple[tuple[str, str], ...]
    loss_terms: tuple[str, ...] = ()

    def order(
        self, images: Any, global_batch: int, seed: int, repeats: int, sampling: data.Sampling = "shuffled"
    ) -> data.GlobalOrder:
        """The order of the training images in each epoch; balanced ones have a class each."""
        if sampling == "balanced":
            return data.BalancedOrder(len(images), global_batch, seed, repeats, labels=images.labels())
        return data.GlobalOrder(len(images), global_batch, seed, repeats)

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

    def eval_batches(self, eval_set: Any, indices: Sequence[int], batch: int) -> list[list[int]]:
        """A process's share of the evaluation set, cut into batches of at most `batch` images."""
        return data.in_order(indices, batch)

    def in_steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        """What the loader gives, with what a micro-batch has to know of its whole optimiser step."""
        return batches

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

    def terms(self) -> tuple[Tensor, ...]:
        """Scalars that the last loss was made of, by the names in `loss_terms`."""
        return ()

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
