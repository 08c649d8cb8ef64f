"""Draws the data set of the detection proxy on a CPU: coloured shapes on dark noise, with boxes in COCO's form.

    python scripts/draw_shapes.py FOLDER TRAIN VAL

FOLDER, which must not be there yet, gets TRAIN and VAL images of 96 x 80 pixels in train/ and val/ and
annotations/instances_{train,val}.json. Each image shows one shape or two, which do not overlap: rectangles, discs and
triangles, each kind with a hue of its own. An image is a function of its split and number alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 96, 80
SIDES = 24, 56  # of a shape's box, least and most
KINDS = "rectangle", "disc", "triangle"
TRIES = 20  # to find a place for the second shape

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def drawn(split: int, number: int) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """An image, and category id and box of each of its shapes."""
    draw = np.random.default_rng([split, number])
    ground = draw.integers(0, 41, 3) + draw.integers(0, 41, (HEIGHT, WIDTH, 3))
    image = Image.fromarray(ground.astype(np.uint8))
    shapes: list[tuple[int, Box]] = []
    for _ in range(draw.integers(1, 3)):
        kind = int(draw.integers(len(KINDS)))
        hue = np.where(np.arange(3) == kind, draw.integers(190, 256), draw.integers(0, 70, 3))
        for _ in range(TRIES):
            box = _placed(draw, square=KINDS[kind] == "disc")
            if not any(_overlap(box, other) for _, other in shapes):
                _fill(image, kind, box, tuple(hue.tolist()))
                shapes.append((kind + 1, box))
                break
    return image, shapes


def _placed(draw: np.random.Generator, square: bool) -> Box:
    width, height = draw.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    height = width if square else height
    left, top = (int(draw.integers(room + 1)) for room in (WIDTH - width, HEIGHT - height))
    return left, top, width, height


def _overlap(one: Box, other: Box) -> bool:
    return all(
        max(one[axis], other[axis]) < min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) for axis in (0, 1)
    )


def _fill(image: Image.Image, kind: int, box: Box, colour: tuple[int, ...]) -> None:
    left, top, width, height = box
    right, bottom = left + width - 1, top + height - 1
    pen = ImageDraw.Draw(image)
    if KINDS[kind] == "rectangle":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif KINDS[kind] == "disc":
        pen.ellipse((left, top, right, bottom), fill=colour)
    else:
        pen.polygon(((left + right) / 2, top, left, bottom, right, bottom), fill=colour)


def write(root: Path, split: int, name: str, count: int) -> None:
    """Images of a split and their annotations, below `root`."""
    (root / name).mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(count):
        image, shapes = drawn(split, number)
        image.save(root / name / f"{number:05}.png")
        images.append({"id": number + 1, "file_name": f"{number:05}.png", "width": WIDTH, "height": HEIGHT})
        for category, box in shapes:
            place = {"image_id": number + 1, "category_id": category, "bbox": box, "area": box[2] * box[3]}
            objects.append({"id": len(objects) + 1, **place, "iscrowd": 0})
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    whole = {"images": images, "annotations": objects, "categories": categories}
    (root / f"annotations/instances_{name}.json").write_text(json.dumps(whole), encoding="utf-8")


def main() -> None:
    """Draws all, anew what was broken off, and gives the folder its name when it is whole."""
    if len(sys.argv) != 4:
        print("usage: python scripts/draw_shapes.py FOLDER TRAIN VAL", file=sys.stderr)
        sys.exit(2)
    whole, counts = Path(sys.argv[1]), [int(count) for count in sys.argv[2:]]
    part = whole.with_name(f"{whole.name}.part")
    (part / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate(zip(("train", "val"), counts, strict=True)):
        write(part, split, name, count)
    part.rename(whole)


if __name__ == "__main__":
    main()
