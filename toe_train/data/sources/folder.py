"""A folder of class folders, in ImageNet's layout."""

import hashlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes

from toe_train.data.sources.images import load_rgb
from toe_train.errors import UserError

NAMES_SHOWN = 5  # of a longer list in a message


class FolderImages:
    """One folder of class folders, read lazily: root/<class>/**/<image>, labels in the order of the sorted names.

    Classes, images and their order are those of torchvision's ImageFolder. The index of n images is three arrays: a
    forked process reads them without copying them, and an instance pickles as these and the digest, so that one process
    can list the files for all.

    Arrays: `_paths` uint8, the paths below the root, one after the other; `_offsets` (n + 1,) int64, where each begins;
    `_labels` (n,) int32.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = os.path.expanduser(str(root))
        try:
            self.classes, _ = find_classes(self._folder)
            self._index(_paths_of_images(self._folder, name) for name in self.classes)
        except OSError as fault:
            raise UserError(
                f"{root} cannot be used as a folder of classes ({fault}): put each image into its class's folder, "
                f"{root / '<class>' / '<image>'}"
            ) from fault

    def _index(self, paths_by_class: Iterable[list[str]]) -> None:
        """Keep the paths as arrays, a class at a time, with the digest."""
        paths, lengths, counts = bytearray(), [np.zeros(1, np.int64)], []
        summed = hashlib.sha256()
        for label, texts in enumerate(paths_by_class):
            encoded = [_encoded(text) for text in texts]
            summed.update(b"".join(b"/%b\0%d\n" % (path, label) for path in encoded))
            paths += b"".join(encoded)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            counts.append(len(encoded))
        if empty := [name for name, count in zip(self.classes, counts, strict=True) if count == 0]:
            raise FileNotFoundError(  # as torchvision says it
                f"Found no valid file for the classes {', '.join(empty)}. "
                f"Supported extensions are: {', '.join(IMG_EXTENSIONS)}"
            )
        self._paths = np.frombuffer(bytes(paths), np.uint8)
        self._offsets = np.cumsum(np.concatenate(lengths))
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._digest = summed.hexdigest()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.describe(index)  # raises IndexError past the end, which ends a loop over the images
        return load_rgb(path), int(self._labels[index])

    def describe(self, index: int) -> str:
        """Return the file's path."""
        place = range(len(self))[index]
        path = self._paths[self._offsets[place] : self._offsets[place + 1]].tobytes()
        return os.path.join(self._folder, path.decode("utf-8", "surrogateescape"))

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


def _paths_of_images(root: str, name: str) -> list[str]:
    """Return the paths below `root` of a class's images, in the order of torchvision's ImageFolder."""
    found = []
    for folder, _, files in sorted(os.walk(os.path.join(root, name), followlinks=True)):
        below = os.path.join(folder, "")[len(os.path.join(root, "")) :]
        found += [below + file for file in sorted(files) if file.lower().endswith(IMG_EXTENSIONS)]
    return found


def _encoded(path: str) -> bytes:
    """Return the bytes of a path, the same in every locale; a name that is not UTF-8 keeps its bytes."""
    return path.encode("utf-8", "surrogateescape")


def compare_classes(first: list[str], second: list[str], whose: tuple[str, str] = ("train", "val")) -> str | None:
    """Return the fault of two class lists that differ, else None: labels are numbered by the sorted names."""
    if first == second:
        return None
    own = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    differences = [
        f"only in {name} ({len(names)}): {shorten(names)}" for name, names in zip(whose, own, strict=True) if names
    ]
    return (
        f"{whose[0]} has {len(first)} classes and {whose[1]} {len(second)}, and they must be the same, else labels do "
        f"not agree; {'; '.join(differences) or 'their order differs'}: rename, add or remove the class folders"
    )


def shorten(names: list[str]) -> str:
    """Join names for a message, only the first few of many."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"
