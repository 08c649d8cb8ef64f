"""Images in archives of tar's format, read by their positions; nothing is unpacked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from toe_train.data.sources.folder import FolderImages, IndexedImages
from toe_train.data.sources.index import Index, Stamp, build_index, in_folder_order
from toe_train.data.sources.label_lists import LabelList, devkit_list, read_list
from toe_train.data.sources.listing import SPLITS, is_left_behind
from toe_train.data.sources.names import shorten
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.passed_over import PassedOver
from toe_train.data.sources.remembered import remembered
from toe_train.data.sources.span import Span, forget_opened
from toe_train.data.sources.tar_contents import SUFFIX, read_contents
from toe_train.data.sources.tar_forms import labelled
from toe_train.errors import UserError, of_system

OWN_NAMES = ("{split}.tar", "ILSVRC2012_img_{split}.tar")
IN_A_NAME = {"train": "train(ing)?", "val": "val(id|idation)?"}
OTHER_SPLITS = ("test",)


class TarImages(IndexedImages):
    """Images in archives, with the order, labels and digest that they have in a folder of class folders.

    Of each image the index has the archive, the first byte and the length: `_places` (n, 3) int64.

    root: as the user named it. archives: paths, by number.
    """

    def __init__(
        self, root: Path, archives: Sequence[str], index: Index, exif_orientation: ExifOrientation = "ignore"
    ) -> None:
        super().__init__(root, index, exif_orientation)
        self._archives = list(archives)
        self._sizes = [Stamp.of(path).size for path in archives]
        self._places: np.ndarray = index.places

    def place(self, index: int) -> Span:
        """Return the bytes of an archive that an image is."""
        archive, offset, length = self._places[range(len(self))[index]].tolist()
        return Span(self._archives[archive], offset, length, f"{self._archives[archive]}/{self._path(index)}")

    def read(self, index: int) -> bytes:
        """Return an image's bytes as they are stored. Raises OSError where they cannot be read."""
        return self.place(index).read()

    def describe(self, index: int) -> str:
        """Return the archive's path and, behind a slash, the name in it."""
        return self.place(index).name

    def require_here(self) -> None:
        """Raise UserError where an archive is not there, or is of another size: another machine may have read it."""
        for path, size in zip(self._archives, self._sizes, strict=True):
            if not os.path.exists(path) or os.path.getsize(path) != size:
                raise UserError(
                    f"{path} is not on this machine ({platform.node()}) as rank 0 read it, with {size} bytes: "
                    "data.root must hold the same files on all nodes"
                )


def open_tars(
    root: Path,
    split: str,
    label_list: str | Path | None = None,
    label_key: str = "label",
    known: Sequence[str] | None = None,
    exif_orientation: ExifOrientation = "ignore",
    anew: bool = False,
) -> TarImages:
    """Return the images of train or val in the archives of a folder, or in one archive.

    root: holds the archives, see `archives_of`. label_list: of images that lie in no class folders; ImageNet's
    development kit in `root` serves for its validation images. known: train's classes, where these are val's.

    Raises UserError where there are none, or one is damaged or has none of the forms of `tar_forms`.
    """
    archives = archives_of(root, split)
    of_both = archives == [str(root.expanduser())]
    beside = [] if of_both else _beside(root.expanduser(), split, archives)
    return _read_tars(root, archives, split, label_list, label_key, known, exif_orientation, anew, of_both, beside)


def images_at(root: Path, exif_orientation: ExifOrientation = "ignore") -> IndexedImages:
    """Return the images of a folder of class folders, of an archive, or of a folder of archives.

    Raises UserError where it is none of them.
    """
    top = root.expanduser()
    if top.is_file():
        return _read_tars(root, [str(top)], "train", exif_orientation=exif_orientation)
    archives, others = _looked_through(top) if top.is_dir() else ([], [])
    if archives and not others:
        return _read_tars(root, archives, "train", exif_orientation=exif_orientation)
    return FolderImages(root, exif_orientation)


def all_in_archive(path: str) -> tuple[list[Span], list[str]]:
    """Return the images in an archive, or in archives within it, by name, and lines on what is passed over.

    Raises UserError where it cannot be read or is damaged.
    """
    forget_opened()
    try:
        parts, _ = read_contents(path, 0)
    except OSError as fault:
        raise of_system(fault) from fault
    passed = PassedOver()
    found = [
        Span(path, place.offset, place.length, f"{path}/{os.fsdecode(part.under + inside)}")
        for part in parts
        for inside, place in part.images(passed).items()
    ]
    notes = [note for part in parts for note in part.notes]
    return sorted(found, key=str), [*notes, *passed.lines(path)]


def holds_archives(root: Path) -> bool:
    """Whether train and val are in archives there, and not in folders of class folders."""
    top = root.expanduser()
    try:
        return all(not _looked_through(top / split)[1] and archives_of(root, split) for split in SPLITS)
    except UserError:
        return False


def _looked_through(folder: Path) -> tuple[list[str], list[str]]:
    """Return the archives and the folders in a folder."""
    names = sorted(name for name in os.listdir(folder) if not is_left_behind(name)) if folder.is_dir() else []
    archives = [str(folder / name) for name in names if name.lower().endswith(SUFFIX)]
    return archives, [name for name in names if (folder / name).is_dir()]


def _read_tars(
    root: Path,
    archives: list[str],
    split: str,
    label_list: str | Path | None = None,
    label_key: str = "label",
    known: Sequence[str] | None = None,
    exif_orientation: ExifOrientation = "ignore",
    anew: bool = False,
    of_both: bool = False,
    beside: list[str] | None = None,
) -> TarImages:
    forget_opened()
    is_imagenets = split == "val" and os.path.basename(archives[0]) == OWN_NAMES[1].format(split="val")
    try:
        labels = read_list(label_list, split) if label_list else devkit_list(root) if is_imagenets else None
        marks = [stamp.path for stamp in labels.stamps] if labels else []
        identity = [
            "tar",
            split,
            label_key,
            str(of_both),
            *archives,
            *map(os.path.abspath, archives),
            *marks,
            *(known or ()),
            *(beside or ()),
        ]
        make = partial(_index, archives, split, labels, label_key, known, of_both, beside or [])
        index = remembered(identity, make, anew)
    except OSError as fault:
        raise of_system(fault) from fault
    if wrong := index.fault(archives[0]):
        raise UserError(
            f"{shorten(archives)} cannot be used as archives of classes ({wrong}): pack class/image, an archive for "
            "each class, or WebDataset's shards"
        )
    return TarImages(root, archives, index, exif_orientation)


def archives_of(root: Path, split: str) -> list[str]:
    """Return the archives that hold train or val, sorted by name.

    They are `root` itself where it is an archive; train.tar, or ImageNet's own ILSVRC2012_img_train.tar; those of the
    folder train; or those in whose names the word train stands, as in imagenet-train-0001.tar. For val likewise.

    Raises UserError where there are none, or they are there in several ways.
    """
    top = root.expanduser()
    if top.is_file():
        return [str(top)]
    if not top.is_dir():
        raise UserError(f"{root} is not a folder: set data.root to the one that holds {split}.tar")
    try:
        inside = sorted(name for name in os.listdir(top) if name.lower().endswith(SUFFIX) and not is_left_behind(name))
        below = sorted(os.listdir(top / split)) if (top / split).is_dir() else []
    except OSError as fault:
        raise of_system(fault) from fault
    own = [[name] for template in OWN_NAMES if (name := template.format(split=split)) in inside]
    in_folder = [f"{split}/{name}" for name in below if name.lower().endswith(SUFFIX) and not is_left_behind(name)]
    shards = [] if own else [name for name in inside if _names(split, name)]
    ways = [way for way in (*own, in_folder, shards) if way]
    if not ways:
        has = shorten(sorted(name for name in os.listdir(top) if not is_left_behind(name))) or "nothing"
        raise UserError(
            f"{root} has no archives for {split} (it holds {has}): data.root must hold {split}.tar, "
            f"ILSVRC2012_img_{split}.tar, a folder {split} of tars, or tars with {split} in their names"
        )
    if len(ways) > 1:
        raise UserError(
            f"{root} holds {split} in several ways, {' and '.join(shorten(way) for way in ways)}: move all but one away"
        )
    return [str(top / name) for name in ways[0]]


def _names(split: str, name: str) -> bool:
    """Whether the word train, or val, stands in an archive's name."""
    return re.search(rf"(?<![a-z]){IN_A_NAME[split]}(?![a-z])", name, re.IGNORECASE) is not None


def _beside(top: Path, split: str, archives: list[str]) -> list[str]:
    """Return the names of archives in a folder that the split's name stands in, and that are not read for it."""
    names = map(os.path.basename, set(_looked_through(top)[0]) - set(archives))
    return sorted(name for name in names if _names(split, name))


def _index(
    archives: list[str],
    split: str,
    labels: LabelList | None,
    label_key: str,
    known: Sequence[str] | None,
    of_both: bool,
    beside: list[str],
) -> Index:
    """of_both: an archive holds train and val. beside: names of archives of the split that are not read."""
    units, stamps = [], list(labels.stamps) if labels else []
    others = [name for name in (*SPLITS, *OTHER_SPLITS) if name != split]
    for number, path in enumerate(archives):
        parts, stamp = read_contents(path, number)
        stamps.append(stamp)
        for part in parts:
            if not part.below((*others, split)) and of_both:
                raise UserError(
                    f"{path} must hold the folders train and val, and nothing beside them: set data.root to the folder "
                    "that holds an archive for each"
                )
        units += parts
    found = labelled(units, archives, labels, known, label_key)
    notes = [note for unit in units for note in unit.notes]
    notes += [*found.notes, *found.passed.lines(shorten(archives))]
    notes += [f"{shorten(archives)}: passed over {shorten(beside)} beside it"] if beside else []
    texts = found.passed.texts()
    aside = f" (passed over: {'; '.join(texts)})" if texts else ""
    rows = (in_folder_order(found.rows[name].values()) for name in found.classes)
    return build_index(found.classes, rows, stamps, notes, aside)
