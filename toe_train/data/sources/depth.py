"""Bring an image of any mode to 8 bits a channel, by rules that look at the file's format and the image's values."""

import numpy as np
from PIL import Image

BITS_PER_SAMPLE = 258  # TIFF's tag


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a PIL RGB image of an opened file.

    - 16 bits: the high byte.
    - 32-bit integers: as they are where all lie in 0..255; the high byte of 16 bits where all lie in 0..65535.
    - Floats: times 255 where all lie in 0..1, else as they are where all lie in 0..255; rounded.
    - All else as Pillow converts it.

    Raises ValueError for integers and floats outside these ranges, and for what is not a number: no rule would be right
    for them.
    """
    if image.mode == "F":
        image = Image.fromarray(_floats(np.asarray(image)))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and would turn most of a 16-bit image white.
        image = Image.fromarray(_integers(np.asarray(image), _holds_32_bits(image)))
    if image.mode == "RGB":  # which convert would copy
        image.load()
        return image
    return image.convert("RGB")


def _holds_32_bits(image: Image.Image) -> bool:
    """Whether an integer image's file has samples of 32 bits: only TIFF's are; Pillow opens some of 16 bits alike."""
    return image.mode == "I" and image.format == "TIFF" and image.tag_v2.get(BITS_PER_SAMPLE) == (32,)  # type: ignore[attr-defined]


def _integers(values: np.ndarray, deep: bool) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(
            f"its values are {low} .. {high}, and integers must lie in 0..65535; save it with 8 or 16 bits"
        )
    return (values if deep and high <= 255 else values >> 8).astype(np.uint8)


def _floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # nor where one is not a number
        raise ValueError(
            f"its values are {low:g} .. {high:g}, and floats must lie in 0..1 or 0..255; save it with 8 or 16 bits"
        )
    return (values * 255 if high <= 1 else values).round().astype(np.uint8)
