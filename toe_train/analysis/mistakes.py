"""Where a trained model is wrong: accuracy by class, what is taken for what, and the images that it is worst at."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from toe_train import data
from toe_train.build.evaluation import Evaluated

WORST = 25  # images on the contact sheet
COLUMNS = 5
WHOLE = 2000  # classes of which the matrix is written whole
NAMED = 40  # classes whose names a picture of the matrix holds
NUMBERED = 20  # whose cells hold numbers
SIDE = 224  # pixels of an image on the sheet, at most


class ClassScore(NamedTuple):
    """One class: its images, those of them that were taken for it, and those of others that were."""

    name: str
    images: int
    correct: int
    wrongly: int

    @property
    def accuracy(self) -> float | None:
        """In percent; None where no image was read."""
        return 100 * self.correct / self.images if self.images else None


def class_scores(found: Evaluated) -> list[ClassScore]:
    """The scores of each class, in the order of the classes."""
    classes = found.images.classes
    images, right, taken = found.outcomes.by_class(len(classes))
    rows = zip(classes, images.tolist(), right.tolist(), (taken - right).tolist(), strict=True)
    return [ClassScore(*row) for row in rows]


def write_mistakes(found: Evaluated, folder: Path) -> None:
    """Writes `classes.csv`, `confusion.csv` and `.png`, and `worst.csv` and `.png` into a new folder.

    In the matrix a row is a true class and a column what its images were taken for; of more than WHOLE classes there is
    no picture, and the file lists the cells that are not empty. The worst images are those with the largest
    cross-entropy, the worst first.

    Raises:
        UserError: the folder is not new, or cannot be made.
        OSError: the disk does not take it.
    """
    with data.whole_folder(folder) as place:
        scores = class_scores(found)
        heads = ("class", "images", "correct", "accuracy", "others taken for it")
        _write(
            place / "classes.csv",
            heads,
            ((*one[:3], "" if one.accuracy is None else f"{one.accuracy:.3f}", one.wrongly) for one in scores),
        )
        _write_confusion(found, place)
        worst = found.outcomes.worst(WORST)
        _write(
            place / "worst.csv",
            ("image", "class", "taken for", "loss"),
            (
                (found.images.describe(index), *_said(found, index), f"{found.outcomes.losses[index]:.4f}")
                for index in worst
            ),
        )
        draw_worst(found, worst).savefig(place / "worst.png", dpi=120)


def _write_confusion(found: Evaluated, place: Path) -> None:
    classes = found.images.classes
    if len(classes) > WHOLE:
        cells = ((classes[label], classes[taken], count) for label, taken, count in found.outcomes.confusion_cells())
        _write(place / "confusion.csv", ("true class", "taken for", "images"), cells)
        return
    confusion = found.outcomes.confusion(len(classes))
    rows = ((name, *row) for name, row in zip(classes, confusion.tolist(), strict=True))
    _write(place / "confusion.csv", ("true class", *classes), rows)
    draw_confusion(confusion, classes).savefig(place / "confusion.png", dpi=120)


def draw_confusion(confusion: Tensor, classes: Sequence[str]) -> Any:
    """A matplotlib figure of the matrix: shares of each row's images, with numbers where there is room."""
    from matplotlib.figure import Figure

    count = len(classes)
    shares = confusion.float() / confusion.sum(1, keepdim=True).clamp(min=1)
    side = min(14.0, max(4.0, 1.5 + 0.35 * count))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="taken for", ylabel="true class")
    if count > NAMED:
        axes.set(xticks=[], yticks=[])
        return figure
    names = [data.legible(name)[:24] for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize="small", parse_math=False)
    axes.set_yticks(range(count), names, fontsize="small", parse_math=False)
    for row, values in enumerate(confusion.tolist() if count <= NUMBERED else []):
        for column, value in enumerate(values):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(value), ha="center", va="center", fontsize="x-small", color=colour)
    return figure


def draw_worst(found: Evaluated, indices: Sequence[int]) -> Any:
    """A contact sheet as a matplotlib figure: images with their class, and what they were taken for."""
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(indices) / COLUMNS))
    figure = Figure(figsize=(2.2 * COLUMNS, 2.6 * rows), layout="constrained")
    places = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for place in places:
        place.axis("off")
    for place, index in zip(places, indices, strict=False):
        image, _ = found.images[index]
        image.thumbnail((SIDE, SIDE))
        place.imshow(image)
        name, taken = (data.legible(text)[:24] for text in _said(found, index))
        verdict = f"is {name}" + (", and was taken so" if name == taken else f"\ntaken for {taken}")
        place.set_title(f"{verdict}\nloss {found.outcomes.losses[index]:.2f}", fontsize="small", parse_math=False)
    return figure


def _said(found: Evaluated, index: int) -> tuple[str, str]:
    """The class of an image, and what it was taken for."""
    classes, outcomes = found.images.classes, found.outcomes
    return classes[int(outcomes.labels[index])], classes[int(outcomes.predicted[index])]


def _write(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file; a name's bytes are written as they are, though they be no text."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
