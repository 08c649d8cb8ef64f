"""What an evaluation found of each image, beside the means that are the scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from toe_train.data import NOT_COUNTED
from toe_train.runs.processes import Processes


@dataclass(frozen=True)
class Outcomes:
    """Of n images, in their order.

    Attributes:
        labels: (n,) int64, the class; NOT_COUNTED where an image could not be read.
        predicted: (n,) int64, the most probable class.
        losses: (n,) float32, cross-entropy; 0 where it does not count.
    """

    labels: Tensor
    predicted: Tensor
    losses: Tensor

    def confusion(self, num_classes: int) -> Tensor:
        """How many images of each class (rows) were taken for each (columns): (K, K) int64."""
        counted = self.labels != NOT_COUNTED
        cells = self.labels[counted] * num_classes + self.predicted[counted]
        return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)

    def by_class(self, num_classes: int) -> Tensor:
        """Of each class its images, those of them taken for it, and those of any taken for it: (3, K) int64."""
        counted = self.labels != NOT_COUNTED
        labels, predicted = self.labels[counted], self.predicted[counted]
        seen = (labels, labels[labels == predicted], predicted)
        return torch.stack([torch.bincount(one, minlength=num_classes) for one in seen])

    def confusion_cells(self) -> list[tuple[int, int, int]]:
        """The cells of the confusion matrix that are not empty: class, what it was taken for, and how many images."""
        counted = self.labels != NOT_COUNTED
        pairs = torch.stack([self.labels[counted], self.predicted[counted]])
        cells, counts = pairs.unique(dim=1, return_counts=True)
        return [(label, taken, count) for (label, taken), count in zip(cells.T.tolist(), counts.tolist(), strict=True)]

    def worst(self, count: int) -> list[int]:
        """The indices of the images with the largest losses, of those that count; of equal ones the first."""
        counted = (self.labels != NOT_COUNTED).nonzero()[:, 0]
        order = self.losses[counted].argsort(descending=True, stable=True)
        return [int(index) for index in counted[order[:count]]]


class OutcomeRecorder:
    """Keeps what one process's share of an evaluation shows, batch after batch."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def see(self, logits: Tensor, labels: Tensor) -> None:
        """Takes a batch: logits (B, K) float32 and labels (B,)."""
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=NOT_COUNTED)  # (B,)
        self._parts.append(torch.stack([labels.double(), logits.argmax(1).double(), losses.double()]))  # (3, B)

    def outcomes(self, count: int, processes: Processes) -> Outcomes:
        """Of all `count` images of all processes, which call it together; see `data.evaluation_indices`."""
        own = torch.cat(self._parts, dim=1).cpu() if self._parts else torch.zeros(3, 0, dtype=torch.float64)
        found = torch.empty(3, count, dtype=torch.float64)
        for rank, part in enumerate(processes.gather(own)):
            found[:, rank :: processes.world_size] = part
        return Outcomes(found[0].long(), found[1].long(), found[2].float())
