"""A folder of class folders, in ImageNet's layout."""

import hashlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.listing import ClassFolders
from toe_train.data.sources.names import legible
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.errors import UserError


class FolderImages:
    """One folder of class folders, read lazily: root/<class>/**/<image>, labels in the order of the sorted names.

    Classes, images and their order are those of torchvision's ImageFolder, but for what `ClassFolders` passes over. The
    index of n images is three arrays: a forked process reads them without copying them, and an instance pickles as
    these, the digest and a few lines, so that one process can list the files for all.

    exif_orientation: whether images are turned as their EXIF blocks say.

    Arrays: `_paths` uint8, the paths below the root, one after the other; `_offsets` (n + 1,) int64, where each begins;
    `_labels` (n,) int32.
    """

    def __init__(self, root: Path, exif_orientation: ExifOrientation = "ignore") -> None:
        self.root = root
        self.exif_orientation: ExifOrientation = exif_orientation
        self._folder = os.path.expanduser(str(root))
        try:
            listing = ClassFolders(self._folder)
            self.classes = listing.classes
            self._index(map(listing.images, self.classes), listing)
            self._notes = "\n".join(listing.notes())
        except OSError as fault:
            raise UserError(
                f"{root} cannot be used as a folder of classes ({fault}): put each image into its class's folder, "
                f"{root / '<class>' / '<image>'}"
            ) from fault

    def _index(self, paths_by_class: Iterable[list[str]], listing: ClassFolders) -> None:
        """Keep the paths as arrays, a class at a time, with the digest."""
        if not self.classes:
            raise FileNotFoundError(f"Couldn't find any class folder in {self._folder}.{listing.aside()}")
        paths, lengths, counts = bytearray(), [np.zeros(1, np.int64)], []
        summed = hashlib.sha256()
        for label, texts in enumerate(paths_by_class):
            encoded = [os.fsencode(text) for text in texts]  # the bytes of the names, whatever they are
            summed.update(b"".join(b"/%b\0%d\n" % (path, label) for path in encoded))
            paths += b"".join(encoded)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            counts.append(len(encoded))
        if empty := [name for name, count in zip(self.classes, counts, strict=True) if count == 0]:
            raise FileNotFoundError(  # as torchvision says it
                f"Found no valid file for the classes {', '.join(map(legible, empty))}. "
                f"Supported extensions are: {', '.join(IMG_EXTENSIONS)}{listing.aside()}"
            )
        self._paths = np.frombuffer(bytes(paths), np.uint8)
        self._offsets = np.cumsum(np.concatenate(lengths))
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._digest = summed.hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.describe(index)  # raises IndexError past the end, which ends a loop over the images
        return load_rgb(path, self.exif_orientation), int(self._labels[index])

    def describe(self, index: int) -> str:
        """Return the file's path."""
        place = range(len(self))[index]
        path = self._paths[self._offsets[place] : self._offsets[place + 1]].tobytes()
        return os.path.join(self._folder, os.fsdecode(path))

    def require_here(self) -> None:
        """Raise UserError where the first or the last image is not there: another machine may have listed them."""
        for index in (0, len(self) - 1):
            if not os.path.exists(path := self.describe(index)):
                raise UserError(
                    f"{path} is not on this machine ({platform.node()}), and rank 0 lists it: data.root must hold the "
                    "same files on all nodes"
                )

    def digest(self) -> str:
        """Return the SHA-256 of the relative paths and labels; what is in the files does not count."""
        return self._digest

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return [int(count) for count in np.bincount(self._labels, minlength=len(self.classes))]

    def notes(self) -> list[str]:
        """Return a line on each thing that a person should know of the listing: what was passed over, for one."""
        return self._notes.split("\n") if self._notes else []
