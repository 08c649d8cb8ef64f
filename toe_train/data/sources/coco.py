"""Images with boxes: a folder of images and an annotation file as COCO has them, for train and for val."""

from __future__ import annotations

import hashlib
import os
import platform
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from toe_train.data.augmentation.box_transform import BoxTarget, Size
from toe_train.data.sources.annotations import Annotations, annotations_of
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.names import legible
from toe_train.errors import UserError


class CocoPlaces(NamedTuple):
    """Where images and annotations lie, below a root or absolute; by default where COCO 2017 has them."""

    train_folder: str = "train2017"
    val_folder: str = "val2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_annotations: str = "annotations/instances_val2017.json"

    def of(self, root: Path, split: str) -> tuple[Path, Path]:
        """Folder and annotation file of train or val."""
        names = (
            (self.train_folder, self.train_annotations) if split == "train" else (self.val_folder, self.val_annotations)
        )
        return root / names[0], root / names[1]


class CocoImages:
    """Images of a folder with the objects that an annotation file names; all of them, those without objects too.

    Labels are the category ids as they are, so that there are as many classes as the highest id and one.

    Raises:
        UserError: the annotations have faults.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        self._annotations = annotations_of(file)
        self.classes = class_names(self._annotations)
        order = np.argsort(self._annotations.image, kind="stable")
        self._order = order  # objects, those of one image together
        self._ends = np.searchsorted(self._annotations.image[order], np.arange(len(self) + 1))
        self._numbers = np.argsort(np.argsort(self._annotations.ids)) + 1  # see `image_id`

    def __len__(self) -> int:
        return len(self._annotations.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, BoxTarget]:
        """An image and its objects, crowds left out, in pixels.

        Raises:
            UserError: it cannot be read, or is of another size than its annotation says.
        """
        path, expected = self.describe(index), self.size(index)
        image = load_rgb(path)
        if image.size != expected:
            raise UserError(wrong_size(path, image.size, expected))
        return image, self.target(index)

    def target(self, index: int) -> BoxTarget:
        """The objects of an image, crowds left out, in pixels."""
        found = self._annotations
        own = self._order[self._ends[index] : self._ends[index + 1]]
        own = own[~found.crowd[own]]
        return BoxTarget.of(found.category[own], found.boxes[own], self.size(index))

    def size(self, index: int) -> Size:
        """Width and height in pixels, as annotated."""
        width, height = self._annotations.sizes[index].tolist()
        return width, height

    @property
    def sizes(self) -> np.ndarray:
        """(n, 2) int64, width and height of all images."""
        return self._annotations.sizes

    def image_id(self, index: int) -> int:
        """Of an evaluation: the image's number from 1 on, in the order of the annotation file's ids.

        pycocotools takes ids as float64, which ids from 2^53 on do not fit in; the order decides between equal scores.
        """
        return int(self._numbers[index])

    def ground_truth(self) -> dict[str, Any]:
        """COCO's JSON of all objects, crowds among them, as far as an evaluation of boxes reads it.

        Objects are numbered from 1: pycocotools takes 0 for none. Images have the ids of `image_id`.
        """
        found = self._annotations
        columns = (self._numbers[found.image], found.category, found.boxes, found.area, found.crowd)
        objects = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [{"id": number} for number in self._numbers.tolist()],
            "categories": [{"id": identity, "name": name} for identity, name in found.categories.items()],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image, category, box, area, crowd) in enumerate(objects, start=1)
            ],
        }

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self.folder, self._annotations.names[range(len(self))[index]])

    def require_here(self) -> None:
        """Raise UserError where the first or the last image is not there."""
        for index in (0, len(self) - 1):
            if not os.path.exists(path := self.describe(index)):
                raise UserError(
                    f"{path} is not on this machine ({platform.node()}): data.root must hold the images that the "
                    "annotations name, on all nodes"
                )

    def counts(self) -> list[int]:
        """Return the number of objects of each class."""
        return [int(count) for count in np.bincount(self._annotations.category, minlength=len(self.classes))]

    def notes(self) -> list[str]:
        """Nothing is passed over that a run has to say."""
        return []

    def digest(self) -> str:
        """Return the SHA-256 of the names, sizes, ids and objects; what is in the images does not count."""
        found = self._annotations
        summed = hashlib.sha256("\0".join(found.names).encode(errors="surrogateescape"))
        for part in (found.ids, found.sizes, found.image, found.category, found.boxes, found.area, found.crowd):
            summed.update(np.ascontiguousarray(part).tobytes())
        return summed.hexdigest()


def class_names(found: Annotations) -> list[str]:
    """A name for each label; ids that no category has are there without being used."""
    return [found.categories.get(label, f"(no category {label})") for label in range(max(found.categories) + 1)]


def wrong_size(path: str, size: Size, annotated: Size) -> str:
    """The fault of an image of another size than its annotation says."""
    return (
        f"{path} is {size[0]} x {size[1]} pixels and annotated as {annotated[0]} x {annotated[1]}, so that its boxes "
        "lie elsewhere: mend the annotation, or bring back the image that it is of"
    )


def open_coco(root: Path, places: CocoPlaces) -> tuple[CocoImages, CocoImages]:
    """Return (train, val).

    Raises UserError where annotations have faults, or the categories of train and val differ.
    """
    train, val = (CocoImages(*places.of(root, split)) for split in ("train", "val"))
    if fault := differing_categories(train.classes, val.classes):
        raise UserError(fault)
    return train, val


def differing_categories(train: list[str], val: list[str]) -> str | None:
    """The fault of annotation files whose categories differ, with the first id that does; None where none does."""
    names = zip_longest(train, val, fillvalue="none")
    for label, (one, other) in enumerate(names):
        if one != other:
            return (
                f"the categories of train and val must be the same: {label} is {legible(one)} in train and "
                f"{legible(other)} in val; give both files one list of categories"
            )
    return None
