"""What is told of a detector: boxes as rows or lines, and images with boxes drawn."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from toe_train import data
from toe_train.build.box_prediction import LEAST_SCORE, FoundObjects
from toe_train.build.weights.trained import Trained
from toe_train.errors import UserError
from toe_train.tasks.box_pictures import with_boxes

JPEG_SIDE = 65_500  # pixels that Pillow writes, at most
COLUMNS = ("image", "class", "score", "x_min", "y_min", "x_max", "y_max")


def least_score(given: float | None, trained: Trained) -> float:
    """`--min-score`, or what it is by default.

    Raises:
        UserError: no score, or the model finds no boxes.
    """
    if given is None:
        return LEAST_SCORE
    require_detector(trained, "--min-score")
    if not 0 <= given <= 1:
        raise UserError(f"--min-score {given} must be from 0 to 1, such as {LEAST_SCORE}")
    return given


def require_detector(trained: Trained, option: str) -> None:
    """Refuses an option that a classifier has no use for.

    Raises:
        UserError: the model is one.
    """
    if trained.config.task_kind != "detection":
        raise trained.asked.fault(f"is a classifier, and {option} is of detectors, which find boxes; leave it out")


def box_writer(file: TextIO, form: str, classes: Sequence[str]) -> Callable[[FoundObjects], None]:
    """Writes what is found in an image: a row of CSV for each box, or a line of JSON for each image."""
    if form == "jsonl":

        def write_line(found: FoundObjects) -> None:
            line = {
                "image": str(found.image),
                "width": found.size[0],
                "height": found.size[1],
                "classes": [classes[label] for label in found.labels],
                "scores": [round(score, 6) for score in found.scores],
                "boxes": [[round(value, 2) for value in box] for box in found.boxes.tolist()],
            }
            file.write(json.dumps(line) + "\n")

        return write_line
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)

    def write_rows(found: FoundObjects) -> None:
        for label, score, box in zip(found.labels, found.scores, found.boxes.tolist(), strict=True):
            rows.writerow([found.image, classes[label], f"{score:.6f}", *(f"{value:.2f}" for value in box)])

    return write_rows


class BoxPictures:
    """A folder that gets each image with its boxes drawn, as `<name>.jpg`; a name that is taken gets a number.

    Args:
        folder: is made.
        classes: names.
        exif_orientation: what is done about that of the files, as when they were looked at.

    Raises:
        UserError: the folder is not new.
    """

    def __init__(self, folder: Path, classes: Sequence[str], exif_orientation: data.ExifOrientation) -> None:
        data.require_new(folder, "--pictures")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._classes = [data.legible(name) for name in classes]
        self._exif_orientation = exif_orientation
        self._taken: set[str] = set()

    def draw(self, found: FoundObjects) -> None:
        """Writes the picture of an image."""
        image = data.load_rgb(found.image, self._exif_orientation)
        texts = [f"{self._classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
        drawn = with_boxes(image, found.boxes, found.labels, texts)
        drawn.thumbnail((JPEG_SIDE, JPEG_SIDE))  # which leaves smaller ones as they are
        drawn.save(self._folder / self._name(str(found.image)), quality=92, subsampling=0)

    def _name(self, path: str) -> str:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = f"{stem}.jpg", 1
        while name.lower() in self._taken:  # as on file systems that take upper and lower case for one
            number += 1
            name = f"{stem}-{number}.jpg"
        self._taken.add(name.lower())
        return name
