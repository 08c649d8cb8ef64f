"""Crop, flip and RandAugment on the device, for hosts whose few cores do no more than read and decode.

A worker draws what timm's transforms would draw, applies none of it and sends each decoded image once with the draws of
its views. The device then does to the views what Pillow does on the host. The pixels differ by rounding, and where
images are turned or sheared by the kernel of the cubic interpolation, which is sharper in Pillow.

Shapes: V views of S x S pixels, n of them with one operation, I decoded images, L layers of RandAugment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from toe_train.data.augmentation.joint_transform import AFFINE
from toe_train.data.augmentation.pixels import Pixels, erased_parts
from toe_train.errors import UserError

KNOWN = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
NOTHING = -1  # in place of an operation

_Operation = Callable[[Tensor, Tensor, "Drawing"], Tensor]


class Drawing(NamedTuple):
    """What views have in common: their side S in pixels, the interpolation, and the colour of what comes from outside.

    fill: red, green and blue of 0..255.
    """

    size: int
    interpolation: str
    fill: tuple[int, int, int]


class View(NamedTuple):
    """One view to be made of a decoded image.

    place: top, left, height, width in pixels, and 1 where it is flipped. operations: pairs of a number in NAMES, or
    NOTHING, and the operation's argument. erased: as `Pixels` of no image.
    """

    drawing: Drawing
    image: Image.Image
    place: tuple[int, int, int, int, int]
    operations: tuple[tuple[int, float], ...]
    erased: Pixels

    @staticmethod
    def joined(views: Sequence[View]) -> Views:
        """Return them as a batch, each image's bytes once."""
        distinct = list({id(view.image): view.image for view in views}.values())
        row_of = {id(image): row for row, image in enumerate(distinct)}
        arrays = [torch.from_numpy(np.array(image)) for image in distinct]
        starts = np.cumsum([0, *(array.numel() for array in arrays)])[:-1]
        frames = [(int(start), *array.shape[:2]) for start, array in zip(starts, arrays, strict=True)]
        return Views(
            views[0].drawing,
            torch.cat([array.flatten() for array in arrays]),
            torch.tensor(frames),
            torch.tensor([(row_of[id(view.image)], *view.place) for view in views]),
            torch.tensor([view.operations for view in views], dtype=torch.float64).view(len(views), -1, 2),
            *erased_parts([view.erased for view in views]),
        )


class Views(NamedTuple):
    """A batch of views to be made. All but the bytes and fillings stay on the CPU.

    sources: bytes of the images, one after the other. frames: (I, 3) int64, where each begins, height, width. places:
    (V, 6) int64, image, then as in `View`. operations: (V, L, 2) float64 as there. rectangles, fillings: of `Pixels`.
    """

    drawing: Drawing
    sources: Tensor
    frames: Tensor
    places: Tensor
    operations: Tensor
    rectangles: Tensor
    fillings: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Views:
        """Return them with bytes and fillings on `device`."""
        sources, fillings = (part.to(device, non_blocking=non_blocking) for part in (self.sources, self.fillings))
        return self._replace(sources=sources, fillings=fillings)


class DrawView:
    """A `train_transform` that draws and leaves the work to the device; it changes the given one.

    Raises UserError for steps that the device does not know.
    """

    def __init__(self, transform: transforms.Compose) -> None:
        self._noted: list[tuple[int, float]] = []  # operations of the RandAugment step in progress
        steps = list(transform.transforms)
        self._crop = self._taken(steps, RandomResizedCropAndInterpolation)
        self._flip = self._taken(steps, transforms.RandomHorizontalFlip)
        self._augment = self._taken(steps, RandAugment)
        self._erasing = self._taken(steps, RandomErasing)
        others = [step for step in steps if not isinstance(step, (transforms.ToTensor, transforms.Normalize))]
        known = [step for step in (self._crop, self._flip, self._augment, self._erasing) if step is not None]
        places = [transform.transforms.index(step) for step in known]
        in_order = places == sorted(places)
        if self._crop is None or others or not in_order or self._crop.interpolation not in KNOWN:
            named = type(others[0]).__name__ if others else "this crop or interpolation"
            named = named if in_order else "order=lvvit"
            raise UserError(
                "on_device knows crop=random_resized with interpolation bilinear or bicubic, order=deit, flips, "
                f"rand_augment and erasing, and not {named}: set augment.on_device=false"
            )
        fill = (0, 0, 0)
        for op in self._augment.ops if self._augment else ():
            if op.name not in NAMES:
                raise UserError(f"on_device does not know rand_augment's {op.name}: set augment.on_device=false")
            fill = op.kwargs["fillcolor"]
            op.aug_fn = partial(self._note, NAMES.index(op.name))
        self._drawing = Drawing(self._crop.size[0], InterpolationMode(self._crop.interpolation).value, fill)

    def __call__(self, image: Image.Image) -> View:
        """Return what is to be made of a PIL RGB image."""
        assert self._crop is not None
        place = self._crop.get_params(image, self._crop.scale, self._crop.ratio)
        flipped = self._flip is not None and bool(torch.rand(1) < self._flip.p)
        self._noted = []
        if self._augment is not None:
            self._augment(image)
        layers = self._augment.num_layers if self._augment is not None else 0
        noted = [*self._noted, *[(NOTHING, 0.0)] * (layers - len(self._noted))]
        erased = Pixels.erased(self._erasing, self._drawing.size, self._drawing.size)
        return View(self._drawing, image, (*place, int(flipped)), tuple(noted), erased)

    def _note(self, number: int, image: Image.Image, *arguments: float, **_: Any) -> Image.Image:
        self._noted.append((number, float(arguments[0]) if arguments else 0.0))
        return image

    @staticmethod
    def _taken(steps: list[Any], kind: type) -> Any:
        """Take the only step of a kind out of `steps`; None where there is none."""
        found = next((step for step in steps if isinstance(step, kind)), None)
        if found is not None:
            steps.remove(found)
        return found


def made(views: Views) -> Pixels:
    """Return the views' pixels, made where their bytes are, without waiting for the device."""
    shown = torch.cat([_cropped(views, place) for place in views.places.tolist()])  # (V, 3, S, S) uint8
    for layer in views.operations.unbind(1):
        numbers, arguments = layer.unbind(1)  # (V,), (V,)
        for number in numbers.unique().tolist():
            if number == NOTHING:
                continue
            rows = (numbers == number).nonzero().flatten()  # (n,)
            changed = _OPERATIONS[NAMES[int(number)]](_at(shown, rows), arguments[rows], views.drawing)
            shown.index_copy_(0, rows.to(shown.device, non_blocking=True), changed)
    return Pixels(shown.permute(0, 2, 3, 1), views.rectangles, views.fillings)


def _at(shown: Tensor, rows: Tensor) -> Tensor:
    return shown.index_select(0, rows.to(shown.device, non_blocking=True))  # (n, 3, S, S)


def _cropped(views: Views, place: list[int]) -> Tensor:
    """Return a view's part of its image, (1, 3, S, S) uint8."""
    row, top, left, height, width, flipped = place
    start, rows, columns = views.frames[row].tolist()
    image = views.sources[start : start + 3 * rows * columns].view(rows, columns, 3)
    part = image[top : top + height, left : left + width].permute(2, 0, 1).unsqueeze(0).float()
    size, mode, _ = views.drawing
    part = F.interpolate(part, (size, size), mode=mode, antialias=mode != "nearest")
    part = part.round_().clamp_(0, 255).to(torch.uint8)
    return part.flip(3) if flipped else part


def _per_image(arguments: Tensor, images: Tensor) -> Tensor:
    """(n,) on the CPU -> (n, 1, 1, 1) float32 beside the images."""
    return arguments.float().to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _moved(name: str, images: Tensor, arguments: Tensor, drawing: Drawing) -> Tensor:
    """Pillow's affine transform by a matrix from the output's pixel centres to the input's."""
    size = drawing.size
    matrices = torch.tensor([AFFINE[name](size, size, argument) for argument in arguments.tolist()])  # (n, 6)
    matrices = matrices.to(images.device, non_blocking=True).view(-1, 2, 3)
    centres = torch.arange(size, device=images.device) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=2)  # (S, S, 3)
    source = torch.einsum("nij,hwj->nhwi", matrices, points)  # (n, S, S, 2), x and y
    places = source * 2 / size - 1
    moved = F.grid_sample(images.float(), places, drawing.interpolation, padding_mode="border", align_corners=False)
    moved = moved.clamp_(0, 255)  # Pillow cuts the fraction off, as the conversion below does
    inside = ((source >= 0) & (source < size)).all(dim=3).unsqueeze(1)  # (n, 1, S, S)
    fill = torch.tensor(drawing.fill, dtype=torch.float32).view(3, 1, 1).to(images.device, non_blocking=True)
    return torch.where(inside, moved, fill).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Pillow's luminance, (n, 3, S, S) -> (n, 1, S, S) int32."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).unsqueeze(1)


def _blended(plain: Tensor, images: Tensor, arguments: Tensor) -> Tensor:
    """Pillow's blend from a degenerate version (factor 0) over the image (1) beyond; the fraction is cut off."""
    plain = plain.float()
    return (plain + _per_image(arguments, images) * (images.float() - plain)).clamp_(0, 255).to(torch.uint8)


def _color(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    return _blended(_grey(images), images, arguments)


def _contrast(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    mean = _grey(images).double().mean(dim=(1, 2, 3), keepdim=True).add_(0.5).floor_()  # (n, 1, 1, 1)
    return _blended(mean, images, arguments)


def _brightness(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    return _blended(torch.zeros_like(images), images, arguments)


def _sharpness(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images.float(), kernel / 13, groups=3).add_(0.5).floor_()
    return _blended(smooth, images, arguments)


def _posterize(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    kept = 256 - 2 ** (8 - arguments.clamp(0, 8))  # 0 bits: black, as `transforms` mends it
    return images & _per_image(kept, images).to(torch.uint8)


def _solarize(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    return torch.where(images < _per_image(arguments, images), images, 255 - images)


def _solarize_add(images: Tensor, arguments: Tensor, _: Drawing) -> Tensor:
    brighter = (images.float() + _per_image(arguments, images)).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


_OPERATIONS: dict[str, _Operation] = {
    "AutoContrast": lambda images, *_: functional.autocontrast(images),
    "Equalize": lambda images, *_: functional.equalize(images),
    "Invert": lambda images, *_: 255 - images,
    **{name: partial(_moved, name) for name in AFFINE},
    **dict.fromkeys(("Posterize", "PosterizeIncreasing"), _posterize),
    **dict.fromkeys(("Solarize", "SolarizeIncreasing"), _solarize),
    "SolarizeAdd": _solarize_add,
    **dict.fromkeys(("Color", "ColorIncreasing"), _color),
    **dict.fromkeys(("Contrast", "ContrastIncreasing"), _contrast),
    **dict.fromkeys(("Brightness", "BrightnessIncreasing"), _brightness),
    **dict.fromkeys(("Sharpness", "SharpnessIncreasing"), _sharpness),
}
NAMES = tuple(_OPERATIONS)
