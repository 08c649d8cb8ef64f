"""Training images as bytes up to the device, where they are normalised and erased.

A byte a channel is a quarter of what workers stack and send otherwise, and of what goes to the device. What a rectangle
is erased with is drawn in the worker all the same, so that every device shows the same pixels.

Shapes: B images of H x W pixels, E erased rectangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms


class Pixels(NamedTuple):
    """A batch of images before normalisation, and the rectangles to be erased after it.

    images: (B, H, W, 3) uint8. rectangles: (E, 5) int64, on the CPU wherever the others are: row of the batch, top,
    left, height, width. fillings: float32, (3, height, width) of each rectangle, one after the other.
    """

    images: Tensor
    rectangles: Tensor
    fillings: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Pixels:
        """Return them on `device`, but for `rectangles`."""
        images, fillings = (part.to(device, non_blocking=non_blocking) for part in (self.images, self.fillings))
        return Pixels(images, self.rectangles, fillings)

    @staticmethod
    def erased(erasing: RandomErasing | None, height: int, width: int) -> Pixels:
        """Return what timm's step draws for an image of that size, without one."""
        canvas = _Canvas(height, width)
        if erasing is not None:
            erasing(canvas)
        return Pixels(
            torch.empty(0, height, width, 3, dtype=torch.uint8),
            torch.tensor(canvas.rectangles, dtype=torch.int64).view(-1, 5),
            torch.cat([torch.empty(0), *canvas.fillings]),
        )

    @staticmethod
    def joined(parts: Sequence[Pixels]) -> Pixels:
        """Return batches of one as one batch."""
        images = default_collate([part.images[0] for part in parts])  # into shared memory where it is a worker's
        return Pixels(images, *erased_parts(parts))


def erased_parts(parts: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """Return the rectangles and fillings of a batch whose rows are `parts`."""
    rectangles = [part.rectangles + torch.tensor([row, 0, 0, 0, 0]) for row, part in enumerate(parts)]
    return torch.cat(rectangles), torch.cat([part.fillings for part in parts])


class ToPixels:
    """The last step of a transform: a PIL RGB image to a batch of one; `erasing` draws what timm's step would."""

    def __init__(self, erasing: RandomErasing | None) -> None:
        self._erasing = erasing

    def __call__(self, image: Image.Image) -> Pixels:
        """Return the image's bytes with the rectangles to erase."""
        erased = Pixels.erased(self._erasing, image.height, image.width)
        return erased._replace(images=torch.from_numpy(np.array(image))[None])


class _Canvas:
    """Stands before timm's RandomErasing for a normalised image, (3, H, W), and notes what is written into it."""

    dtype = torch.float32

    def __init__(self, height: int, width: int) -> None:
        self._size = 3, height, width
        self.rectangles: list[tuple[int, ...]] = []
        self.fillings: list[Tensor] = []

    def size(self) -> tuple[int, int, int]:
        return self._size

    def __setitem__(self, place: tuple[slice, slice, slice], filling: Tensor) -> None:
        _, rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self.rectangles.append((0, rows.start, columns.start, height, width))
        self.fillings.append(filling.expand(3, height, width).flatten())


def ending_in_pixels(transform: transforms.Compose) -> transforms.Compose:
    """Return a `train_transform` whose last steps, to a normalised tensor, give way to `ToPixels`; it changes it."""
    steps = transform.transforms
    end = next(place for place, step in enumerate(steps) if isinstance(step, transforms.ToTensor))
    erasing = next((step for step in steps[end:] if isinstance(step, RandomErasing)), None)
    transform.transforms = [*steps[:end], ToPixels(erasing)]
    return transform


def collate(samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return a batch of (Pixels of one image, label), or of (View, label)."""
    shown, labels = ([sample[part] for sample in samples] for part in (0, 1))
    return shown[0].joined(shown), default_collate(labels)


def normalized(pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (B, 3, H, W) float32 of images scaled to 0..1, less `mean`, over `std`, per channel, and erased.

    The same numbers, on a CPU bit for bit, as ToTensor, Normalize and RandomErasing give. It does not wait for the
    device.
    """
    images = pixels.images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (B, 3, H, W)
    channels = (torch.tensor(values).view(3, 1, 1).to(images.device, non_blocking=True) for values in (mean, std))
    images.div_(255).sub_(next(channels)).div_(next(channels))
    start = 0
    for row, top, left, height, width in pixels.rectangles.tolist():
        filling = pixels.fillings[start : start + 3 * height * width].view(3, height, width)
        images[row, :, top : top + height, left : left + width] = filling
        start += 3 * height * width
    return images
