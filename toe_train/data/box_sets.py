"""What loaders read of images with boxes: training and evaluation samples, batches of them, and their order.

Images of one batch must have one size. Those of a training epoch get theirs by chance, so a group of images that stand
in a row in the order shares what it draws; `ShapedOrder` makes such groups of like shapes.

Shapes: B images of a batch, M objects of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toe_train.data.augmentation.box_transform import BoxAugmentation, BoxEvaluation, BoxTarget
from toe_train.data.augmentation.pixels import Pixels, normalized
from toe_train.data.order.positions import GlobalOrder, SampleKey
from toe_train.data.order.randomness import derive_seed, generator, reseed
from toe_train.data.sets import NOT_COUNTED, EvalSet, Read, TrainSet, made
from toe_train.data.sources.coco import CocoImages
from toe_train.data.sources.named import NamedScenes
from toe_train.data.sources.skipping import SkippedImages
from toe_train.errors import NoMemory, UserError


class Objects(NamedTuple):
    """The objects of a training batch, image after image, and how many.

    labels: int64, boxes: (of all images, 4) float32 cxcywh in shares of the image's sides. counts: (B,) int64, of each
    image; of_step: int64, of all images of this process in the optimiser step. Both are on the CPU wherever the others
    are.
    """

    labels: Tensor
    boxes: Tensor
    counts: Tensor
    of_step: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Objects:
        """Return them on `device`, but for the counts."""
        labels, boxes = (part.to(device, non_blocking=non_blocking) for part in (self.labels, self.boxes))
        return self._replace(labels=labels, boxes=boxes)

    def by_image(self) -> list[dict[str, Tensor]]:
        """Return them as a dictionary of `labels` (M,) and `boxes` (M, 4) for each image."""
        counts = self.counts.tolist()
        return [
            {"labels": labels, "boxes": boxes}
            for labels, boxes in zip(self.labels.split(counts), self.boxes.split(counts), strict=True)
        ]


class Seen(NamedTuple):
    """An evaluation image: (3, H, W) float32, its objects in shares of its sides, its place in the data set, its size.

    size: height and width in pixels as the file has them. index: NOT_COUNTED for an image that could not be read.
    """

    image: Tensor
    objects: BoxTarget
    index: int  # type: ignore[assignment]  # hides tuple.index
    size: tuple[int, int]


class BoxTrainSet(TrainSet):
    """Augmented training images with their objects, addressed by place in the run; see `TrainSet`.

    What a group of images shares is a function of (seed, epoch, group), what each draws of (seed, epoch, position).
    """

    def __init__(
        self, dataset: CocoImages, transform: BoxAugmentation, seed: int, skipped: SkippedImages | None = None
    ) -> None:
        super().__init__(dataset, transform, seed, skipped)  # type: ignore[arg-type]  # it is called here alone
        self._images = dataset
        self._boxes = transform

    def _transformed(self, image: Image.Image, key: SampleKey, read: Read) -> Any:
        group = key.group or (read.index,)  # of the image that is shown, which may stand for an unreadable one
        place = key.position // len(group)
        reseed(derive_seed(self._seed, "size", key.epoch, place))
        geometry = self._boxes.draw([self._images.size(index) for index in group])
        reseed(derive_seed(self._seed, "sample", key.epoch, key.position))
        return self._boxes(image, read.label, geometry)


@dataclass(frozen=True)
class SceneTransform:
    """An image alone as a detector is evaluated on it: from a PIL RGB image to (3, H, W) float32, normalised.

    Attributes:
        shown: what brings it to its size.
        mean, std: per channel, of images scaled to 0..1.
    """

    shown: BoxEvaluation
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Image.Image) -> Tensor:
        """The image's pixels as the model takes them."""
        return normalized(self.shown(image, BoxTarget.none())[0], self.mean, self.std)[0]


class BoxEvalSet(EvalSet):
    """Evaluation images as `Seen`, by index; see `EvalSet`."""

    def __init__(
        self,
        dataset: CocoImages | NamedScenes,
        transform: BoxEvaluation,
        mean: Sequence[float],
        std: Sequence[float],
        skipped: SkippedImages | None = None,
    ) -> None:
        super().__init__(dataset, transform, skipped)  # type: ignore[arg-type]  # it is called here alone
        self._images = dataset
        self._boxes = transform
        self._normal = mean, std

    def __getitem__(self, index: int) -> Seen:  # type: ignore[override]
        try:
            image, target = self._images[index]
            place, size = index, image.size
            pixels, objects = made(self._images.describe(index), image, self._boxes, target)
        except (UserError, NoMemory) as fault:
            if self._skipped is None:
                raise
            self._skipped.note(self._images.describe(index), str(fault))
            place, size = NOT_COUNTED, self._images.size(index)
            pixels, objects = self._boxes(Image.new("RGB", size), self._images.target(index))
        return Seen(normalized(pixels, *self._normal)[0], objects, place, size[::-1])

    def batches(self, indices: Sequence[int], batch: int) -> list[list[int]]:
        """Cut a process's share of the images into batches of images that are evaluated at one size."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index in indices:
            by_size.setdefault(self._boxes.size(self._images.size(index)), []).append(index)
        return [alike[first : first + batch] for alike in by_size.values() for first in range(0, len(alike), batch)]


def collate_boxes(samples: Sequence[tuple[Pixels, BoxTarget]]) -> tuple[Pixels, Objects]:
    """A training batch; images of several sizes are filled up at the right and bottom with 0, normalised as it is."""
    pixels, targets = zip(*samples, strict=True)
    height, width = (max(one.images.shape[side] for one in pixels) for side in (1, 2))
    counts = torch.tensor([len(target.labels) for target in targets])
    objects = Objects(
        torch.cat([target.labels for target in targets]),
        torch.cat([target.boxes for target in targets]),
        counts,
        counts.sum(),
    )
    return Pixels.joined([_filled(one, height, width) for one in pixels]), objects


def collate_seen(samples: Sequence[Seen]) -> tuple[Tensor, Sequence[Seen]]:
    """An evaluation batch: images (B, 3, H, W), which have one size, and what they are, without pixels."""
    return torch.stack([seen.image for seen in samples]), [seen._replace(image=torch.empty(0)) for seen in samples]


def _filled(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels of one image on a canvas; what is added counts as erased with 0, which is after normalisation."""
    _, own_height, own_width, _ = pixels.images.shape
    canvas = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    canvas[:, :own_height, :own_width] = pixels.images
    added = [(0, 0, own_width, height, width - own_width), (0, own_height, 0, height - own_height, own_width)]
    added = [part for part in added if part[3] and part[4]]
    empty = [torch.zeros(3 * rows * columns) for _, _, _, rows, columns in added]
    return Pixels(canvas, torch.tensor(added, dtype=torch.int64).view(-1, 5), torch.cat([torch.empty(0), *empty]))


def in_steps(batches: Iterator[tuple[Any, Objects]], accumulation: int) -> Iterator[tuple[Any, Objects]]:
    """The same batches; each knows how many objects all of its optimiser step have, which are read ahead for it."""
    while step := list(islice(batches, accumulation)):
        total = torch.stack([objects.of_step for _, objects in step]).sum()
        for images, objects in step:
            yield images, objects._replace(of_step=total)


@dataclass(frozen=True)
class ShapedOrder(GlobalOrder):
    """An order in which images of like shape stand together in groups, so that a group can have one size.

    The images of an epoch are those of `GlobalOrder`. Those of one size are put together in the order in which they
    come; what is left over of each size, sorted by its ratio of sides, likewise. Then the groups are shuffled. All of
    it is a function of the seed and the epoch.

    Attributes:
        shapes: (num_samples, 2) int64, width and height of each image.
        group: images of a group, of which `global_batch` is a multiple.
    """

    shapes: np.ndarray = field(default_factory=lambda: np.empty((0, 2)), compare=False)
    group: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.global_batch % self.group:
            raise UserError(
                f"detection.same_size = {self.group}: train.global_batch = {self.global_batch} is no multiple of it; "
                f"use a batch of {max(1, self.global_batch // self.group) * self.group}"
            )

    def epoch(self, epoch: int, attempt: int = 0) -> Tensor:
        """Return the indices of an epoch, see `GlobalOrder.epoch`."""
        indices = super().epoch(epoch, attempt)
        if self.group == 1:
            return indices
        groups, rest = [], list[int]()
        by_size: dict[tuple[int, int], list[int]] = {}
        for index in indices.tolist():
            width, height = self.shapes[index].tolist()
            by_size.setdefault((width, height), []).append(index)
        for alike in by_size.values():
            whole = len(alike) // self.group * self.group
            groups += [alike[first : first + self.group] for first in range(0, whole, self.group)]
            rest += alike[whole:]
        rest.sort(key=lambda index: self.shapes[index][0] / self.shapes[index][1])
        groups += [rest[first : first + self.group] for first in range(0, len(rest), self.group)]
        place = (epoch, attempt) if attempt else (epoch,)
        shuffled = torch.randperm(len(groups), generator=generator(self.seed, "groups", *place))
        return torch.tensor(groups, dtype=torch.int64)[shuffled].flatten()

    def group_at(self, indices: Tensor, position: int) -> tuple[int, ...]:
        """Return the images of a position's group."""
        first = position // self.group * self.group
        return tuple(indices[first : first + self.group].tolist()) if self.group > 1 else ()
