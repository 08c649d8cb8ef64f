"""An order in which every class stands equally often, however many images it has."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from toe_train.data.order.positions import GlobalOrder
from toe_train.data.order.randomness import generator


@dataclass(frozen=True)
class BalancedOrder(GlobalOrder):
    """Each class in turn: every K images in a row, K being the number of classes, are of K classes, shuffled anew.

    A class gives its images in a shuffled order, and once all have come, in another one: a small class is seen several
    times in an epoch before a large one is seen whole. An epoch is as long as without. All of it is a function of the
    seed and the epoch. The usual draw with weights of 1 / (images of the class) has these counts on average only.

    Attributes:
        labels: (num_samples,) integers, the class of each image; a class without images has no turn.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), compare=False)

    def epoch(self, epoch: int, attempt: int = 0) -> Tensor:
        """Return the indices of an epoch, see `GlobalOrder.epoch`."""
        length = self.steps_per_epoch * self.global_batch
        distinct = -(-length // self.repeats)
        place = (epoch, attempt) if attempt else (epoch,)
        source = generator(self.seed, "balanced", *place)
        labels = torch.from_numpy(np.asarray(self.labels, np.int64))
        members = labels.argsort(stable=True).split(torch.bincount(labels).tolist())
        present = [images for images in members if len(images)]
        rounds = -(-distinct // len(present))
        turns = torch.rand(rounds, len(present), generator=source).argsort(1).flatten()[:distinct]  # whose turn it is
        counts = torch.bincount(turns, minlength=len(present)).tolist()
        shown = [_passes(images, count, source) for images, count in zip(present, counts, strict=True)]
        indices = torch.empty(distinct, dtype=torch.int64)
        indices[turns.argsort(stable=True)] = torch.cat(shown)
        return indices.repeat_interleave(self.repeats)[:length]


def _passes(images: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Return `count` of a class's images, (count,): each once in every pass over them."""
    passes = -(-count // len(images))
    shuffled = [images[torch.randperm(len(images), generator=source)] for _ in range(passes)]
    return torch.cat([images[:0], *shuffled])[:count]
