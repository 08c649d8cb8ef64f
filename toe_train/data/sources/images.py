"""Read an image file of any kind as RGB, or say which file cannot be read."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from toe_train.errors import UserError


def load_rgb(path: str | Path) -> Image.Image:
    """Read a file as a PIL RGB image: greyscale, CMYK, palette, transparent and 16-bit ones too.

    Transparency is dropped and EXIF orientation ignored, as in torchvision's loader and so in DeiT. Pillow's warnings
    (damaged EXIF, palette transparency) do not reach the console.

    Raises UserError naming the file where it cannot be opened or decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
                raise ValueError("a pipe, a device or a folder, and no file")
            with Image.open(path) as image:
                return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as fault:  # on broken bytes Pillow's decoders raise nearly any kind
        reason = str(fault).replace(repr(str(path)), "").strip() or type(fault).__name__
        raise UserError(
            f"{path} cannot be read as an image ({reason}): replace or remove the file; "
            "`toe-tools doctor --config FILE` lists every such file"
        ) from fault


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and would turn most of a 16-bit image white.
        high_byte = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high_byte.clip(0, 255).astype(np.uint8))
    if image.mode == "RGB":  # which convert would copy
        image.load()
        return image
    return image.convert("RGB")
