"""How a camera was held: the orientation that an image's EXIF block gives, by which its pixels are to be turned."""

import io
import warnings
from pathlib import Path
from typing import Literal

from PIL import Image

from toe_train.data.sources.span import Span

# What is done about it; DeiT's loader, torchvision's, ignores it.
ExifOrientation = Literal["ignore", "apply"]

UPRIGHT = 1
TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # as Pillow's ImageOps.exif_transpose


def orientation(image: Image.Image) -> int:
    """Return the orientation of an opened image, 2 to 8; UPRIGHT where it has none, or a damaged block.

    TIFFs are upright: there the tag belongs to the format, and Pillow turns the pixels when it decodes them.
    """
    if image.format == "TIFF":
        return UPRIGHT
    try:
        found = image.getexif().get(TAG)
    except Exception:  # on a damaged block Pillow raises nearly any kind
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def orientation_of(path: str | Path | Span) -> int:
    """Return the orientation of a file; UPRIGHT too where it cannot be read, which is another's to say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(path.read()) if isinstance(path, Span) else path) as image:
                return orientation(image)
    except Exception:
        return UPRIGHT


def turned(image: Image.Image, given: int) -> Image.Image:
    """Return a decoded image as the camera saw it."""
    return image if given == UPRIGHT else image.transpose(TURNS[given])


def as_exif(given: int) -> Image.Exif:
    """Return a block that holds nothing but an orientation."""
    block = Image.Exif()
    block[TAG] = given
    return block
