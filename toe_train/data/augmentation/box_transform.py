"""Transforms that move an image and its boxes together: DETR's, as YOLOS has them (YOLOS datasets/transforms.py).

What is common to the images of one batch, its size and what leads to it, is drawn apart from what each image draws by
itself. With one image a batch the law is the released one.

Shapes: M objects of an image; boxes are xyxy in pixels, until they end as cxcywh in shares of the image's sides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms import RandomCrop
from torchvision.transforms.v2 import functional

from toe_train.data.augmentation.pixels import Pixels, ToPixels

Size = tuple[int, int]  # width and height in pixels, as Pillow has them


class BoxTarget(NamedTuple):
    """The objects of an image: labels (M,) int64, boxes (M, 4) float32."""

    labels: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, labels: np.ndarray, spans: np.ndarray, size: Size) -> BoxTarget:
        """Objects of an image of that size from boxes (M, 4) left, top, width, height: cut to it, empty ones left out.

        In float32 from the first sum on, as released.
        """
        boxes = torch.as_tensor(spans, dtype=torch.float32).reshape(-1, 4).clone()
        boxes[:, 2:] += boxes[:, :2]
        return cls(torch.as_tensor(labels, dtype=torch.int64), boxes).within(size)

    @classmethod
    def none(cls) -> BoxTarget:
        """No objects."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))

    def within(self, size: Size) -> BoxTarget:
        """Cut to an image of that size; what has no width or no height left is left out."""
        boxes = torch.minimum(self.boxes.clamp(min=0), torch.tensor([*size, *size], dtype=torch.float32))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return BoxTarget(self.labels[keep], boxes[keep])

    def mirrored(self, width: int) -> BoxTarget:
        """Flipped from left to right."""
        boxes = self.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
        return BoxTarget(self.labels, boxes)

    def cropped(self, top: int, left: int, height: int, width: int) -> BoxTarget:
        """What of them is in a part of the image, however thin."""
        moved = self.boxes - torch.tensor([left, top, left, top])
        return BoxTarget(self.labels, moved).within((width, height))

    def scaled(self, before: Size, after: Size) -> BoxTarget:
        """At another size of the image."""
        across, down = (new / old for new, old in zip(after, before, strict=True))
        return BoxTarget(self.labels, self.boxes * torch.tensor([across, down, across, down]))

    def in_shares(self, size: Size) -> BoxTarget:
        """Boxes as cxcywh in shares of the image's sides."""
        shares = box_convert(self.boxes, "xyxy", "cxcywh") / torch.tensor([*size, *size], dtype=torch.float32)
        return BoxTarget(self.labels, shares)


def resized_size(size: Size, short: int, longest: int | None, multiple: int) -> Size:
    """The size to which an image is resized so that its shorter side is about `short`.

    Where the longer one would exceed `longest`, it is about that. Both are rounded down to a multiple, so that the
    aspect ratio changes a little; to one `multiple` at least, also where the shorter side would be less than a pixel
    (which the released code fails on).
    """
    small, large = float(min(size)), float(max(size))
    if longest is not None and large / small * short > longest:
        short = round(longest * small / large)
        if not short:
            return _at_least(multiple, [int(longest * side / large) for side in size])
    # In the released code's order of operations.
    return _at_least(multiple, [int(short * side / min(size)) for side in size])


def _at_least(multiple: int, sides: Sequence[int]) -> Size:
    width, height = (max(multiple, side // multiple * multiple) for side in sides)
    return width, height


class Geometry(NamedTuple):
    """What images of one batch share: the size that they end at, and what they are cut from.

    crop: shorter side to which an image is resized first, and width and height of what is cut of it; None for whole
    images.
    """

    size: Size
    crop: tuple[int, Size] | None


@dataclass(frozen=True)
class BoxAugmentation:
    """DETR's training transform: flip; resize, or resize, cut and resize.

    Attributes:
        hflip: probability of a flip.
        short_sides: of which one is drawn.
        longest: that the longer side may be; None for any.
        crop_prob: probability of cutting.
        crop_from: shorter sides of the image of which a part is cut; one is drawn.
        crop_sides: least and most of the part's sides, drawn one by one; an image that is smaller gives all it has.
        multiple: of which both sides are, the model's patch size.
    """

    hflip: float
    short_sides: tuple[int, ...]
    longest: int | None
    crop_prob: float
    crop_from: tuple[int, ...]
    crop_sides: tuple[int, int]
    multiple: int

    def draw(self, sizes: Sequence[Size]) -> Geometry:
        """Draws, by Python's generator, what images of these sizes share; they end at the size of the first."""
        if random.random() >= self.crop_prob:
            short = random.choice(self.short_sides)
            return Geometry(resized_size(sizes[0], short, self.longest, self.multiple), None)
        first = random.choice(self.crop_from)
        whole = [resized_size(size, first, None, self.multiple) for size in sizes]
        low, high = self.crop_sides
        part = (_between(low, high, min(w for w, _ in whole)), _between(low, high, min(h for _, h in whole)))
        short = random.choice(self.short_sides)
        return Geometry(resized_size(part, short, self.longest, self.multiple), (first, part))

    def __call__(self, image: Image.Image, target: BoxTarget, geometry: Geometry) -> tuple[Pixels, BoxTarget]:
        """The image's bytes, and its objects in shares of its sides; the flip and the place of the part are drawn."""
        if random.random() < self.hflip:
            image, target = functional.horizontal_flip(image), target.mirrored(image.width)
        if geometry.crop is not None:
            first, (width, height) = geometry.crop
            image, target = _resized(image, target, resized_size(image.size, first, None, self.multiple))
            part = [min(height, image.height), min(width, image.width)]
            top, left, height, width = RandomCrop.get_params(image, part)
            image = functional.crop(image, top, left, height, width)
            target = target.cropped(top, left, height, width)
        image, target = _resized(image, target, geometry.size)
        return ToPixels(None)(image), target.in_shares(image.size)


def _between(low: int, high: int, most: int) -> int:
    """A side of a part, of an image with a side of `most`."""
    return random.randint(min(low, most), min(high, most))


def _resized(image: Image.Image, target: BoxTarget, size: Size) -> tuple[Image.Image, BoxTarget]:
    before, (width, height) = image.size, size
    return functional.resize(image, [height, width]), target.scaled(before, size)


@dataclass(frozen=True)
class BoxEvaluation:
    """An image as it is evaluated: resized to one short side.

    Attributes:
        short: side.
        longest: that the longer side may be; None for any.
        multiple: see `BoxAugmentation`.
    """

    short: int
    longest: int | None
    multiple: int

    def size(self, size: Size) -> Size:
        """The size that an image of `size` is evaluated at."""
        return resized_size(size, self.short, self.longest, self.multiple)

    def __call__(self, image: Image.Image, target: BoxTarget) -> tuple[Pixels, BoxTarget]:
        """The image's bytes, and its objects in shares of its sides."""
        image, target = _resized(image, target, self.size(image.size))
        return ToPixels(None)(image), target.in_shares(image.size)
