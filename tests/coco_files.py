"""A small data set in COCO's form, made by code."""

import copy
import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "square"}, {"id": 3, "name": "disc"}]
SIZES = [(96, 64), (64, 96), (96, 64), (80, 64), (96, 64), (64, 96), (96, 72), (96, 64)]


def content(split, objects=2, first=1):
    """Annotations of 8 images for train, of 4 for val: one image without objects and one crowd in each."""
    draw = np.random.default_rng(first)
    sizes = SIZES[: 8 if split == "train" else 4]
    images = [
        {"id": 10 * number + first, "file_name": f"{split}_{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes)
    ]
    annotations = []
    for one in images[:-1]:
        for number in range(objects):
            side = draw.integers(16, 40)
            left, top = draw.integers(0, one["width"] - side), draw.integers(0, one["height"] - side)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": one["id"],
                    "category_id": (1, 3)[number % 2],
                    "bbox": [int(left), int(top), int(side), int(side)],
                    "area": int(side**2),
                    "iscrowd": int(one is images[1] and number == 1),
                }
            )
    return {"images": images, "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}


def write(root):
    """Images with a square or disc in each box, under COCO's own names below `root`."""
    (root / "annotations").mkdir(parents=True)
    for split, first in (("train", 1), ("val", 2)):
        made = content(split, first=first)
        folder = root / f"{split}2017"
        folder.mkdir()
        for one in made["images"]:
            pixels = np.random.default_rng(one["id"]).integers(0, 60, (one["height"], one["width"], 3), dtype=np.uint8)
            for item in made["annotations"]:
                left, top, side, _ = item["bbox"]
                if item["image_id"] == one["id"]:
                    pixels[top : top + side, left : left + side, item["category_id"] // 2] = 250
            Image.fromarray(pixels).save(folder / one["file_name"])
        save(root, split, made)
    return root


def save(root, split, made):
    """Write annotations anew."""
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(made))
