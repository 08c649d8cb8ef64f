"""From a PIL RGB image to the (3, image_size, image_size) float32 tensor that a model sees.

timm builds the transforms, as in DeiT datasets.py; here are only the choices that DeiT makes around them.
"""

import re
from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from toe_train.data.augmentation.thin import Resize, cutting_thin_ones
from toe_train.errors import UserError

Transform = Callable[[Image.Image], Tensor]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "random")
CROPS = ("random_resized", "padded")
ORDERS = ("deit", "lvvit")
ERASING_MODES = ("pixel", "rand", "const")
_RAND_AUGMENT_SECTION = re.compile(
    r"m\d+|n[1-9]\d*|p(0(\.\d+)?|1(\.0+)?|\.\d+)|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3a|3aw)"
)


def train_transform(
    *,
    image_size: int,
    crop: str,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    interpolation: str,
    hflip: float,
    rand_augment: str | None,
    color_jitter: float | None,
    erasing_prob: float,
    erasing_mode: str,
    erasing_count: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    order: str = "deit",
    downsampled: int | None = None,
) -> transforms.Compose:
    """Build the training transform: crop, flip, RandAugment or colour jitter, normalise, erase.

    order: "deit" as above; "lvvit" crops after RandAugment, which then works on the whole image (TokenLabeling
    tlt/data, with interpolation "random").
    crop: "random_resized" cuts a share `crop_scale` of the area at an aspect `crop_ratio`; "padded" brings the shorter
    side to image_size, pads 4 pixels and cuts, what DeiT does at 32 pixels and below (DeiT datasets.py).
    rand_augment: timm's string, DeiT's is "rand-m9-mstd0.5-inc1"; while it is given, timm leaves colour jitter out
    (unless the string has "t3a").
    erasing_*: RandomErasing of the normalised image; DeiT's are 0.25, "pixel", 1.
    mean, std: per channel, of images scaled to 0..1; RandAugment fills with the mean colour.
    downsampled: side to which the image is brought by Lanczos between RandAugment and normalising, where it is smaller
    than image_size (EfficientTrain++, datasets_buffer.py; docs/fidelity.md, "EfficientTrain++").

    Raises UserError for a value outside these rules.
    """
    given = (("order", order, ORDERS), ("crop", crop, CROPS), ("interpolation", interpolation, INTERPOLATIONS))
    for name, value, legal in (*given, ("erasing mode", erasing_mode, ERASING_MODES)):
        _require(name, value, legal)
    if rand_augment is not None:
        _check_rand_augment(rand_augment)
    built: transforms.Compose = create_transform(
        image_size,
        is_training=True,
        scale=crop_scale,
        ratio=crop_ratio,
        hflip=hflip,
        color_jitter=color_jitter or None,  # type: ignore[arg-type]
        auto_augment=rand_augment,
        interpolation=interpolation,
        mean=mean,
        std=std,
        re_prob=erasing_prob,
        re_mode=erasing_mode,
        re_count=erasing_count,
    )
    for step in built.transforms:
        if isinstance(step, auto_augment.RandAugment):
            _mend_posterize(step)
    if crop == "padded":
        resizing = InterpolationMode("bicubic" if interpolation == "random" else interpolation)
        # Resizing leaves an image of that size alone; a thin image is cut from its middle.
        built.transforms[:1] = [Resize(image_size, resizing), transforms.RandomCrop(image_size, padding=4)]
    if order == "lvvit":
        count = 2 if crop == "padded" else 1
        cropping, others = built.transforms[:count], built.transforms[count:]
        place = _place_of_tensor(others)
        built.transforms = [*others[:place], *cropping, *others[place:]]
    if downsampled is not None and downsampled < image_size:
        built.transforms.insert(
            _place_of_tensor(built.transforms), transforms.Resize(downsampled, InterpolationMode.LANCZOS)
        )
    return built


def _place_of_tensor(steps: list[Any]) -> int:
    return next(place for place, step in enumerate(steps) if isinstance(step, transforms.ToTensor))


class TwoSizes:
    """An image through two transforms: what a model for smaller images sees of it, and the whole."""

    def __init__(self, smaller: Transform, whole: Transform) -> None:
        self.transforms = smaller, whole

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """The image at both sizes."""
        smaller, whole = self.transforms
        return smaller(image), whole(image)


def eval_transform(
    *,
    image_size: int,
    crop_pct: float,
    interpolation: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> transforms.Compose:
    """Build the evaluation transform: shorter side to int(image_size / crop_pct), centre crop, normalise.

    DeiT evaluates at crop_pct 0.875, bicubic: 256 for 224 (DeiT datasets.py). With crop_pct 1.0 an image that already
    has the size passes untouched. Of an image longer than `thin.ORDINARY` times its width only what is left is made.

    Raises UserError for a value outside these rules.
    """
    _require("interpolation", interpolation, INTERPOLATIONS[:-1])
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct {crop_pct} must be above 0 and at most 1: the centre's share of the side; use 0.875")
    built: transforms.Compose = create_transform(
        image_size, is_training=False, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std
    )
    return cutting_thin_ones(built)


def _mend_posterize(augment: auto_augment.RandAugment) -> None:
    """Let RandAugment's Posterize work at full strength.

    A magnitude of 10, which N(9, 0.5) reaches once in 44 draws, keeps 0 bits of each channel: a black image until
    Pillow 12, a ValueError since Pillow 13. The paper was trained with the black image.
    """
    for op in augment.ops:
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits_to_keep)
    return posterized


def _require(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise UserError(f"{name} {value!r} is not known: use one of {', '.join(legal)}")


def _check_rand_augment(text: str) -> None:
    """Refuse what timm would refuse by an assertion, or would pass over in silence."""
    first, *sections = text.split("-")
    wrong = [section for section in sections if not _RAND_AUGMENT_SECTION.fullmatch(section)]
    if first != "rand" or wrong:
        culprit = wrong[0] if first == "rand" else first
        raise UserError(
            f"rand_augment {text!r}: {culprit!r} is not understood; write 'rand' and then, joined by '-', any of "
            "m<magnitude>, n<operations>, p<probability>, mstd<noise>, mmax<limit>, inc<0 or 1>, t<weights, 3a or "
            "3aw>, as in 'rand-m9-mstd0.5-inc1'; or null for none"
        )
