"""Resize an image that is far longer than wide: of what would be cut away, nothing is made.

An image of 1 x 65,000 pixels, resized so that its shorter side is 256, has 17 million rows; a centre crop takes 224.
"""

from itertools import pairwise

from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode, pil_modes_mapping

ORDINARY = 16  # times its width that an ordinary image is long, at most
Part = tuple[float, float, float, float]  # top, left, height, width in shares of an image's sides
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)


class Resize(transforms.Resize):
    """torchvision's Resize of the shorter side for an ordinary image; of a thin one, the middle of what that makes.

    size: of the shorter side, in pixels. kept: pixels of the longer side that a thin image is left with, ORDINARY times
    `size` where it is not given. They are those that torchvision's CenterCrop takes of the whole, equal up to rounding:
    Pillow chooses by an image's shape which axis it resizes first, and rounds in between.
    """

    def __init__(self, size: int, interpolation: InterpolationMode, kept: int | None = None) -> None:
        super().__init__(size, interpolation)
        self._side = size
        self._kept = ORDINARY * size if kept is None else kept
        assert self._kept <= ORDINARY * size, (kept, size)  # then a thin image has that many

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the resized image."""
        return self.resized(image)[0]

    def resized(self, image: Image.Image) -> tuple[Image.Image, Part]:
        """Return the resized image, and the part of the given one that it shows."""
        short, long = sorted(image.size)
        if long <= ORDINARY * short:
            return super().forward(image), WHOLE
        whole = int(self._side * long / short)  # as torchvision rounds it
        start = int(round((whole - self._kept) / 2.0))  # noqa: RUF046  # as its CenterCrop does
        first, share = start / whole, self._kept / whole
        near, far = first * long, (first + share) * long
        is_wide = image.width > image.height
        box = (near, 0, far, short) if is_wide else (0, near, short, far)
        shape = (self._kept, self._side) if is_wide else (self._side, self._kept)
        part = (0.0, first, 1.0, share) if is_wide else (first, 0.0, share, 1.0)
        return image.resize(shape, pil_modes_mapping[self.interpolation], box), part


def cutting_thin_ones(transform: transforms.Compose) -> transforms.Compose:
    """Return a transform that resizes the shorter side and then cuts the centre out, safe for thin images; changes it.

    Others, which give an image another shape, are returned as they are.
    """
    steps = transform.transforms
    for place, (step, following) in enumerate(pairwise(steps)):
        if (
            isinstance(step, transforms.Resize)
            and isinstance(step.size, int)
            and isinstance(following, transforms.CenterCrop)
        ):
            steps[place] = Resize(step.size, step.interpolation, max(following.size))
    return transform
