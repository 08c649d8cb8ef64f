"""Look over images in archives or of a list: what `check` does for folders, by the index that a run reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from toe_train.data.findings import Findings, Seen
from toe_train.data.labels.check import check_labels
from toe_train.data.sources.folder import IndexedImages
from toe_train.data.sources.listing import SPLITS
from toe_train.data.sources.names import compare_classes
from toe_train.data.sources.opening import Labelling, open_split, single_class
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.span import Span
from toe_train.data.spread import spread
from toe_train.errors import UserError

Look = Callable[[Path | Span], Seen]  # at one image


def look_at_files(
    kind: str,
    root: Path,
    labelling: Labelling,
    anew: bool,
    sample: int | None,
    progress: bool,
    label_root: str | Path | None,
    label_geometry: str,
    exif_orientation: ExifOrientation,
    found: Findings,
    look: Callable[[ExifOrientation, Path | Span], Seen],
) -> None:
    """Take what is found of the train and val images of a kind into account; see `examine`."""
    images: dict[str, IndexedImages] = {}
    for split in SPLITS:
        known = images["train"].classes if "train" in images else None
        try:
            images[split] = open_split(kind, root, split, "ignore", labelling, anew, known)
        except UserError as fault:
            found.add(str(fault))
            continue
        for name, count in zip(images[split].classes, images[split].counts(), strict=True):
            found.classes[name].counts[split] = count
        found.listed += images[split].notes()
    if len(images) < len(SPLITS):
        return
    train, val = (images[split] for split in SPLITS)
    if wrong := compare_classes(train.classes, val.classes) or single_class(train):
        found.add(wrong)
    chosen = {split: _chosen(images[split], sample) for split in SPLITS}
    _look_at_images(
        [(images[split], index) for split in SPLITS for index in chosen[split]],
        sample,
        progress,
        found,
        partial(look, exif_orientation),
    )
    if label_root is not None:
        labelled = [(Path(train.describe(index)), train.label(index)) for index in chosen["train"]]
        whole = sample is None
        found.add(
            *check_labels(Path(label_root), label_geometry, exif_orientation, train.classes, labelled, whole, progress)
        )


def _look_at_images(
    looked_at: list[tuple[IndexedImages, int]], sample: int | None, progress: bool, found: Findings, look: Look
) -> None:
    places = [_place(images, index) for images, index in looked_at]
    seen = spread(look, places, sample is None, progress)
    for (images, index), one in zip(looked_at, seen, strict=True):
        found.see(Path(images.describe(index)), images.classes[images.label(index)], one)


def _place(images: IndexedImages, index: int) -> Path | Span:
    place = images.place(index)
    return place if isinstance(place, Span) else Path(place)


def _chosen(images: IndexedImages, sample: int | None) -> list[int]:
    """Return about `sample` indices, spread over the images and the same at each call; None gives all."""
    if sample is None or sample >= len(images):
        return list(range(len(images)))
    return sorted(random.Random(0).sample(range(len(images)), sample))
