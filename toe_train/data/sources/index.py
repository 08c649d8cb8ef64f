"""The index of labelled image files: arrays, which forked processes share and one process hands to others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train.data.sources.names import legible


class Stamp(NamedTuple):
    """A file or folder whose size or time would change with what an index was made of; size 0 for a folder."""

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return that of a file or folder as it is now. Raises OSError where it is not there."""
        found = os.stat(path)
        return cls(os.path.abspath(path), 0 if os.path.isdir(path) else found.st_size, found.st_mtime_ns)


class Index(NamedTuple):
    """Which images lie where, in the order of their classes' labels.

    classes: names. paths: uint8, one after the other. offsets: (n + 1,) int64, where each begins. counts: (classes,)
    int64, images of each. digest: SHA-256 of the paths as they are in a folder of class folders, with labels. places:
    (n, 3) int64 for images in archives: the archive's number, first byte, length; (0, 3) for files. stamps: what it was
    made of. notes: lines for a person. aside: what was passed over, as the end of a message. loose: a few names of
    images outside the classes.
    """

    classes: list[str]
    paths: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    digest: str
    places: np.ndarray
    stamps: list[Stamp]
    notes: list[str]
    aside: str = ""
    loose: Sequence[str] = ()

    def path(self, number: int) -> str:
        """Return the path of an image by its number."""
        return os.fsdecode(self.paths[self.offsets[number] : self.offsets[number + 1]].tobytes())

    def images(self, name: str) -> range:
        """Return the numbers of a class's images."""
        label = self.classes.index(name)
        begin = int(self.counts[:label].sum())
        return range(begin, begin + int(self.counts[label]))

    def labels(self) -> np.ndarray:
        """Return the images' labels, (n,) int32."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)

    def without_images(self) -> list[str]:
        """Return the names of classes that have none."""
        return [name for name, count in zip(self.classes, self.counts.tolist(), strict=True) if count == 0]

    def fault(self, folder: str) -> str | None:
        """Return, in torchvision's words, why it is no collection of classes, or None."""
        if not self.classes:
            return f"Couldn't find any class folder in {folder}.{self.aside}"
        if empty := self.without_images():
            return (
                f"Found no valid file for the classes {', '.join(map(legible, empty))}. "
                f"Supported extensions are: {', '.join(IMG_EXTENSIONS)}{self.aside}"
            )
        return None


class Row(NamedTuple):
    """An image: its path as it would be in a folder of class folders, its path as it is, and its place."""

    known_as: str
    path: bytes
    place: tuple[int, int, int] | None = None


def in_folder_order(rows: Iterable[Row]) -> list[Row]:
    """Sort a class's images as a folder's: by folder, then by name."""

    def key(row: Row) -> tuple[str, str]:
        folder, _, name = row.known_as.rpartition("/")
        return folder, name

    return sorted(rows, key=key)


def build_index(
    classes: Sequence[str],
    rows: Iterable[list[Row]],
    stamps: list[Stamp],
    notes: list[str],
    aside: str = "",
    loose: Sequence[str] = (),
) -> Index:
    """Return the index of images that are given a class at a time, in the order of `classes`."""
    paths, lengths, counts, places = bytearray(), [np.zeros(1, np.int64)], [], [np.empty((0, 3), np.int64)]
    summed = hashlib.sha256()
    for label, of_class in enumerate(rows):
        summed.update(b"".join(b"/%b\0%d\n" % (os.fsencode(row.known_as), label) for row in of_class))
        paths += b"".join(row.path for row in of_class)
        lengths.append(np.fromiter((len(row.path) for row in of_class), np.int64, len(of_class)))
        counts.append(len(of_class))
        if of_class and of_class[0].place is not None:
            places.append(np.array([row.place for row in of_class], np.int64))
    return Index(
        list(classes),
        np.frombuffer(bytes(paths), np.uint8),
        np.cumsum(np.concatenate(lengths)),
        np.array(counts, np.int64),
        summed.hexdigest(),
        np.concatenate(places),
        stamps,
        notes,
        aside,
        tuple(loose),
    )
