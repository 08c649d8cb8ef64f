"""Training transforms that move an image and its label map together.

The image takes the very steps of `train_transform`, timm's among them, with the same draws. Its map stays coarse: the
flip and RandAugment's geometric operations move its cells to the nearest place, crops are only noted, and colours
leave it alone (TokenLabeling tlt/data).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from toe_train.data.augmentation.pixels import Pixels
from toe_train.data.augmentation.thin import Part, Resize
from toe_train.data.labels.files import TokenMap, TokenTarget

GEOMETRIES = ("full", "center_crop")

Affine = tuple[
    float, float, float, float, float, float
]  # Pillow's: x and y of the source as a x + b y + c, d x + e y + f


class Frame(NamedTuple):
    """Where a map lies in its image, in shares of the image's sides; it may reach beyond."""

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def first(cls, size: tuple[int, int], geometry: str) -> Frame:
        """Return the frame of a map over an image file of `size` (width, height)."""
        if geometry == "full":
            return cls(0.0, 0.0, 1.0, 1.0)
        width, height = (min(size) / side for side in size)
        return cls((1 - height) / 2, (1 - width) / 2, height, width)

    def mirrored(self) -> Frame:
        """Return the frame once the image is flipped from left to right."""
        return self._replace(left=1 - self.left - self.width)

    def within(self, part: Part) -> Frame:
        """Return the frame once only `part` is left of the image."""
        top, left, height, width = part
        return Frame((self.top - top) / height, (self.left - left) / width, self.height / height, self.width / width)

    def crop(self) -> Tensor:
        """Return the image's place in the map: top, left, height and width in shares of the map's sides, (4,)."""
        return torch.tensor([-self.top / self.height, -self.left / self.width, 1 / self.height, 1 / self.width])


class JointTransform:
    """A training transform for an image with a label map.

    transform: from `train_transform`, of either order, ending in `Pixels`; its RandAugment is changed so that it can be
    followed.
    geometry: "full" where a map covers its whole image, as LV-ViT's training takes every map; "center_crop" where it
    covers the central square, as LV-ViT's public generator makes them (whether the published labels are so is unknown).

    Where a geometric operation brings in what was outside the image, scores become 0; where it brings in what was
    inside the image and outside the map, the map's edge goes on.
    """

    def __init__(self, transform: transforms.Compose, geometry: str = "full") -> None:
        assert geometry in GEOMETRIES, geometry
        self._steps = transform.transforms
        self._geometry = geometry
        self._moves: list[Affine] = []  # of the RandAugment step in progress
        for step in self._steps:
            if isinstance(step, auto_augment.RandAugment):
                for op in step.ops:
                    if op.name in AFFINE:
                        op.aug_fn = partial(self._followed, op.aug_fn, AFFINE[op.name])

    def __call__(self, image: Image.Image, cells: TokenMap, label: int) -> tuple[Pixels, TokenTarget]:
        """Return the image and its target with the map moved along."""
        frame = Frame.first(image.size, self._geometry)
        shown: Any = image
        for step in self._steps:
            if isinstance(step, transforms.RandomHorizontalFlip):
                if torch.rand(1) < step.p:
                    shown, frame = functional.hflip(shown), frame.mirrored()
                    cells = TokenMap(cells.scores.flip(2), cells.ids.flip(2))
            elif isinstance(step, auto_augment.RandAugment):
                self._moves.clear()
                shown = step(shown)
                for move in self._moves:
                    cells = _moved(cells, move, frame, shown.size)
            elif isinstance(step, RandomResizedCropAndInterpolation):
                shown, part = _resized_crop(step, shown)
                frame = frame.within(part)
            elif isinstance(step, Resize):
                shown, part = step.resized(shown)
                frame = frame.within(part)
            elif isinstance(step, transforms.RandomCrop):
                shown, part = _padded_crop(step, shown)
                frame = frame.within(part)
            else:
                shown = step(shown)
        return shown, TokenTarget(cells.scores, cells.ids, frame.crop(), torch.tensor(label))

    def _followed(
        self,
        operation: Callable[..., Image.Image],
        affine: Callable[..., Affine],
        image: Image.Image,
        amount: float,
        **options: Any,
    ) -> Image.Image:
        self._moves.append(affine(*image.size, amount))
        return operation(image, amount, **options)


def _moved(cells: TokenMap, move: Affine, frame: Frame, size: tuple[int, int]) -> TokenMap:
    """Return the map after an operation on its image of `size` (width, height): each cell is what its centre shows."""
    rows, columns = cells.ids.shape[1:]
    width, height = size
    a, b, c, d, e, f = move
    x = (frame.left + frame.width * (torch.arange(columns) + 0.5) / columns) * width  # (W,), pixels
    y = (frame.top + frame.height * (torch.arange(rows) + 0.5) / rows)[:, None] * height  # (H, 1)
    from_x, from_y = (a * x + b * y + c) / width, (d * x + e * y + f) / height  # (H, W), shares of the image
    outside = (from_x < 0) | (from_x >= 1) | (from_y < 0) | (from_y >= 1)
    column = ((from_x - frame.left) / frame.width * columns).floor().long().clamp(0, columns - 1)
    row = ((from_y - frame.top) / frame.height * rows).floor().long().clamp(0, rows - 1)
    return TokenMap(cells.scores[:, row, column].masked_fill(outside, 0), cells.ids[:, row, column])


def _rotation(width: int, height: int, degrees: float) -> Affine:
    """Return Pillow's rotation about the centre, anticlockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _shear_x(width: int, height: int, factor: float) -> Affine:
    return 1, factor, 0, 0, 1, 0


def _shear_y(width: int, height: int, factor: float) -> Affine:
    return 1, 0, 0, factor, 1, 0


def _translation_x(width: int, height: int, share: float) -> Affine:
    return 1, 0, share * width, 0, 1, 0


def _translation_y(width: int, height: int, share: float) -> Affine:
    return 1, 0, 0, 0, 1, share * height


# timm's operations that move pixels: what each does to an image of a width and height, by the operation's amount.
AFFINE: dict[str, Callable[[int, int, float], Affine]] = {
    "Rotate": _rotation,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translation_x,
    "TranslateYRel": _translation_y,
}


def _resized_crop(step: RandomResizedCropAndInterpolation, image: Image.Image) -> tuple[Image.Image, Part]:
    """Return what timm's step makes of an image, and the part of it that it took."""
    top, left, height, width = step.get_params(image, step.scale, step.ratio)
    modes = step.interpolation
    mode = random.choice(modes) if isinstance(modes, (tuple, list)) else modes
    cropped = functional.resized_crop(image, top, left, height, width, list(step.size), mode)
    return cropped, (top / image.height, left / image.width, height / image.height, width / image.width)


def _padded_crop(step: transforms.RandomCrop, image: Image.Image) -> tuple[Image.Image, Part]:
    """Return what torchvision's step makes of an image, and the part of it that it took, which may reach beyond."""
    padded = functional.pad(image, step.padding, step.fill, step.padding_mode)
    top, left, height, width = step.get_params(padded, step.size)
    part = (
        (top - step.padding) / image.height,
        (left - step.padding) / image.width,
        height / image.height,
        width / image.width,
    )
    return functional.crop(padded, top, left, height, width), part
