"""Boxes drawn on images, so that they can be read on dark and on bright ones, on small and on large ones.

Shapes: n boxes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GOLDEN_RATIO = 0.618034  # between the hues of two classes, so that neighbours differ
SHORT_SIDE = 480  # pixels; smaller images are enlarged to about that, else their texts hide them
LONG_SIDE = 4096  # pixels; but none beyond that: a strip would grow past what memory and JPEG hold
Colour = tuple[int, int, int]


def with_boxes(
    image: Image.Image, boxes: Tensor, labels: Sequence[int], texts: Sequence[str], short_side: int = SHORT_SIDE
) -> Image.Image:
    """A copy of an image with boxes in the colours of their classes, each with a text at its upper left corner.

    Args:
        image: RGB.
        boxes: (n, 4) xyxy in its pixels; the last ones are drawn first, so that the first lie on top.
        labels: n, of their classes.
        texts: n; "" for none.
        short_side: an image with a smaller one is enlarged by the least whole factor that brings it there, or by the
            largest with which the longer side is at most LONG_SIDE.
    """
    factor = max(1, min(-(-short_side // min(image.size)), LONG_SIDE // max(image.size)))
    shown = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pen, unit = ImageDraw.Draw(shown), max(1, min(shown.size) // 360)
    font = _font(max(11, min(shown.size) // 34))
    drawn = list(zip((boxes * factor).tolist(), labels, texts, strict=True))[::-1]
    for box, label, _ in drawn:
        _outline(pen, box, colour_of(label), unit, shown.size)
    for box, label, text in drawn:
        if text:
            _tag(pen, box, text, colour_of(label), font, unit, shown.size)
    return shown


def titled(image: Image.Image, text: str) -> Image.Image:
    """An image below a line of text."""
    font = _font(max(11, min(image.size) // 22))
    height = 2 * font.size
    whole = Image.new("RGB", (image.width, image.height + round(height)), "white")
    whole.paste(image, (0, round(height)))
    ImageDraw.Draw(whole).text((4, height / 2), text, fill=(0, 0, 0), font=font, anchor="lm")
    return whole


def colour_of(label: int) -> Colour:
    """Bright, and another one for each class."""
    red, green, blue = colorsys.hsv_to_rgb((0.33 + label * GOLDEN_RATIO) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _outline(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, unit: int, size: tuple[int, int]) -> None:
    """A line of two units within a dark one, whole also where the box ends at the image's edge."""
    left, top, right, bottom = _within(box, size)
    pen.rectangle((left, top, right, bottom), outline=(0, 0, 0), width=4 * unit)
    inner = (left + unit, top + unit, max(left + unit, right - unit), max(top + unit, bottom - unit))
    pen.rectangle(inner, outline=colour, width=2 * unit)


def _tag(
    pen: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    unit: int,
    size: tuple[int, int],
) -> None:
    """Black on the class's colour, above the box; within it where there is no room above."""
    left, top, _, _ = _within(box, size)
    across, down = (round(side) for side in pen.textbbox((0, 0), text, font=font, anchor="lt")[2:])
    width, height = across + 4 * unit, down + 4 * unit
    left = max(0, min(left, size[0] - width))
    top = top - height if top >= height else top
    pen.rectangle((left, top, left + width, top + height), fill=colour, outline=(0, 0, 0), width=unit)
    pen.text((left + 2 * unit, top + 2 * unit), text, fill=(0, 0, 0), font=font, anchor="lt")


def _within(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Whole pixels of the image."""
    left, top, right, bottom = (
        min(max(0, round(value)), side - 1) for value, side in zip(box, (*size, *size), strict=True)
    )
    return left, top, max(left, right), max(top, bottom)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's, which has the letters of European languages; Pillow's own has those of English."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
