"""Images with boxes looked over before a run spends days on them: annotations in full, images in part or in full."""

from __future__ import annotations

import os
import random
from pathlib import Path

from toe_train.data.findings import Findings, Seen
from toe_train.data.sources.annotations import Annotations, read_annotations
from toe_train.data.sources.coco import CocoPlaces, class_names, differing_categories, wrong_size
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.listing import SPLITS
from toe_train.data.spread import spread
from toe_train.errors import NoMemory, UserError

Look = tuple[str, tuple[int, int]]  # an image's path and its size by the annotations


def look_at_coco(root: Path, places: CocoPlaces, sample: int | None, progress: bool, found: Findings) -> None:
    """Puts into `found` what is wrong with train and val; see `examine` for `sample` and `progress`."""
    if not root.is_dir():
        found.add(f"{root} is not a folder: set data.root to the folder that holds the images and annotations")
        return
    read: dict[str, Annotations] = {}
    for split in SPLITS:
        folder, file = places.of(root, split)
        annotations, faults, notes = read_annotations(file)
        found.add(*faults)
        found.listed += notes
        if not folder.is_dir():
            found.add(f"{folder} is not a folder: name the one with the {split} images in data.{split}_folder")
        elif annotations is not None:
            read[split] = annotations
            _count(annotations, split, found)
            _look(folder, annotations, sample, progress, found)
    if len(read) == len(SPLITS):
        train, val = (class_names(read[split]) for split in SPLITS)
        if fault := differing_categories(train, val):
            found.add(fault)
        found.add(*_without_objects(read, places, root))


def _without_objects(read: dict[str, Annotations], places: CocoPlaces, root: Path) -> list[str]:
    """What has nothing to be learned from, or to be scored on."""
    return [
        f"{places.of(root, split)[1]}: no image has an object (crowds do not count), and there is nothing to "
        f"{'learn' if split == 'train' else 'score'}"
        for split, annotations in read.items()
        if annotations.crowd.all()
    ]


def _count(annotations: Annotations, split: str, found: Findings) -> None:
    found.images[split] = len(annotations.names)
    for identity, name in annotations.categories.items():
        found.classes[name].counts[split] = int((annotations.category == identity).sum())


def _look(folder: Path, annotations: Annotations, sample: int | None, progress: bool, found: Findings) -> None:
    """Every image must be there; those that are looked into must be whole and of their annotated size."""
    here: list[Look] = []
    for name, size in zip(annotations.names, annotations.sizes.tolist(), strict=True):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            here.append((path, (size[0], size[1])))
        else:
            found.add(f"{path} is annotated and not there: bring it, or remove it from the annotations")
    chosen = here if sample is None else random.Random(0).sample(here, min(sample, len(here)))
    paths = [path for path, _ in chosen]
    for (path, annotated), seen in zip(chosen, spread(_seen, paths, sample is None, progress), strict=True):
        found.see(Path(path), None, seen)
        if seen.size not in (None, annotated):
            found.add(wrong_size(path, seen.size, annotated))  # the annotation's fault, as likely as the image's


def _seen(path: str) -> Seen:
    try:
        return Seen(None, load_rgb(path).size)
    except (UserError, NoMemory) as fault:
        return Seen(str(fault))
