"""Bring an image of any mode to 8 bits a channel, by rules that look at the file's format and the image's values."""

import numpy as np
from PIL import Image

BITS_PER_SAMPLE = 258  # TIFF's tag


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a PIL RGB image of an opened file.

    - 16 bits: the high byte; of 12 bits the 8 highest.
    - 32-bit integers: as they are where all lie in 0..255; the high byte of 16 bits where all lie in 0..65535.
    - Floats: times 255 where all lie in 0..1, else as they are where all lie in 0..255; rounded.
    - All else as Pillow converts it.

    Raises ValueError for integers and floats outside these ranges, for what is not a number, and where the largest
    value lies so little above a range that the next one would make the image black: no rule would be right for them.
    """
    if image.mode == "F":
        image = Image.fromarray(_floats(np.asarray(image)))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and would turn most of a 16-bit image white.
        image = Image.fromarray(_integers(np.asarray(image), _bits(image)))
    if image.mode == "RGB":  # which convert would copy
        image.load()
        return image
    return image.convert("RGB")


def _bits(image: Image.Image) -> int:
    """Bits of an integer image's samples in its file: TIFF says so; Pillow opens some of 16 bits as those of 32."""
    bits = image.tag_v2.get(BITS_PER_SAMPLE) if image.format == "TIFF" else (16,)  # type: ignore[attr-defined]
    return {(32,): 32, (12,): 12}.get(bits, 16)


def _integers(values: np.ndarray, bits: int) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(
            f"its values are {low} .. {high}, and integers must lie in 0..65535; save it with 8 or 16 bits"
        )
    if bits == 32 and high <= 255:
        return values.astype(np.uint8)
    if bits == 32 and high < 512:
        raise ValueError(
            f"its values are {low} .. {high}: a little more than 8 bits hold, and as 16 bits black; save it with 8 or "
            "16 bits"
        )
    return (values >> (4 if bits == 12 else 8)).astype(np.uint8)


def _floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # nor where one is not a number
        raise ValueError(
            f"its values are {low:g} .. {high:g}, and floats must lie in 0..1 or 0..255; save it with 8 or 16 bits"
        )
    if 1 < high <= 2:  # 0..1 that a filter has overshot, it may be
        raise ValueError(
            f"its values are {low:g} .. {high:g}: a little beyond 0..1, and of 0..255 black; save it with 8 or 16 bits"
        )
    return (values * 255 if high <= 1 else values).round().astype(np.uint8)
