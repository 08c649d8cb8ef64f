"""Read an image file of any kind as RGB, or say which file cannot be read."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from toe_train.data.sources.depth import to_rgb
from toe_train.data.sources.formats import TO_JPEG, kind_inside
from toe_train.data.sources.orientation import ExifOrientation, orientation, turned
from toe_train.data.sources.span import Span
from toe_train.errors import NoMemory, UserError


def load_rgb(path: str | Path | Span, exif_orientation: ExifOrientation = "ignore") -> Image.Image:
    """Read a file, or a part of one, as a PIL RGB image: greyscale, CMYK, palette, transparent and 16-bit ones too.

    What has more than 8 bits a channel is brought to 8 by the rules of `depth.to_rgb`. Transparency is dropped, as
    in torchvision's loader and so in DeiT, which ignore the EXIF orientation too; "apply" turns by it. Pillow's
    warnings (damaged EXIF, palette transparency) do not reach the console.

    Raises UserError naming the file where it cannot be opened, decoded or brought to 8 bits; NoMemory likewise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_opened(path)) as image:
                if exif_orientation == "ignore":
                    return to_rgb(image)
                return turned(to_rgb(image), orientation(image))
    except MemoryError:
        raise NoMemory(f"the memory does not hold {path} as an image") from None
    except FileNotFoundError:
        remedy = "mend the path or leave it out (data.relist=true lists a data set anew)"
        raise UserError(f"image {path} does not exist: {remedy}") from None
    except Exception as fault:  # on broken bytes Pillow's decoders raise nearly any kind
        reason = str(fault).replace(repr(str(path)), "").strip() or type(fault).__name__
        if kind := kind_inside(path):
            reason = f"it is of the kind {kind}, whatever its name; convert it: {TO_JPEG}"
        raise UserError(
            f"{path} cannot be read as an image ({reason}): replace or remove the file; "
            "`toe-tools doctor --config FILE` lists every such file"
        ) from fault


def _opened(path: str | Path | Span) -> str | Path | BinaryIO:
    """Return what Pillow opens."""
    if isinstance(path, Span):
        return io.BytesIO(path.read())
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
        raise ValueError("a pipe, a device or a folder, and no file")
    return path
