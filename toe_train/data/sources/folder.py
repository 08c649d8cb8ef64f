"""A folder of class folders, in ImageNet's layout."""

import os
import platform
from pathlib import Path

import numpy as np
from PIL import Image

from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.index import Index
from toe_train.data.sources.listing import index_of_folder
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.span import Span
from toe_train.errors import UserError


class IndexedImages:
    """Labelled image files, read lazily: the base of a folder's, of archives' and of a list's.

    The index of n images is arrays: a forked process reads them without copying them, and an instance pickles as
    these, the digest and a few lines, so that one process can list the files for all.

    root: of the images, as the user named it. exif_orientation: whether images are turned as their EXIF blocks say.

    Arrays: `_paths` uint8, the paths below the root, one after the other; `_offsets` (n + 1,) int64, where each begins;
    `_labels` (n,) int32.
    """

    def __init__(self, root: Path, index: Index, exif_orientation: ExifOrientation = "ignore") -> None:
        self.root = root
        self.exif_orientation: ExifOrientation = exif_orientation
        self._folder = os.path.expanduser(str(root))
        self.classes = index.classes
        self._paths, self._offsets, self._labels = index.paths, index.offsets, index.labels()
        self._digest = index.digest
        self._notes = "\n".join(index.notes)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        place = self.place(index)  # raises IndexError past the end, which ends a loop over the images
        return load_rgb(place, self.exif_orientation), int(self._labels[index])

    def place(self, index: int) -> str | Span:
        """Return where an image is: the path of a file, or bytes of an archive."""
        return self.describe(index)

    def read(self, index: int) -> bytes:
        """Return an image's bytes as they are stored. Raises OSError where they cannot be read."""
        with open(self.describe(index), "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self._folder, self._path(index))

    def _path(self, index: int) -> str:
        place = range(len(self))[index]
        return os.fsdecode(self._paths[self._offsets[place] : self._offsets[place + 1]].tobytes())

    def label(self, index: int) -> int:
        """Return an image's label; the image is not read."""
        return int(self._labels[index])

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

    def labels(self) -> np.ndarray:
        """Return the label of each image, (n,) int32."""
        return self._labels

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return [int(count) for count in np.bincount(self._labels, minlength=len(self.classes))]

    def notes(self) -> list[str]:
        """Return a line on each thing that a person should know of the listing: what was passed over, for one."""
        return self._notes.split("\n") if self._notes else []


class FolderImages(IndexedImages):
    """One folder of class folders: root/<class>/**/<image>, labels in the order of the sorted names.

    Classes, images and their order are those of torchvision's ImageFolder, but for what `ClassFolders` passes over.

    anew: list the folder, whatever is remembered of it.
    """

    def __init__(self, root: Path, exif_orientation: ExifOrientation = "ignore", anew: bool = False) -> None:
        try:
            index = index_of_folder(root, anew)
            if fault := index.fault(os.path.expanduser(str(root))):
                raise FileNotFoundError(fault)
        except OSError as fault:
            raise UserError(
                f"{root} cannot be used as a folder of classes ({fault}): put each image into its class's folder, "
                f"{root / '<class>' / '<image>'}"
            ) from fault
        super().__init__(root, index, exif_orientation)
