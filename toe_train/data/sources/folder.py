"""A folder of class folders, in ImageNet's layout."""

import hashlib
from pathlib import Path

from PIL import Image
from torchvision import datasets as torchvision_datasets

from toe_train.data.sources.images import load_rgb
from toe_train.errors import UserError

NAMES_SHOWN = 5  # of a longer list in a message


class FolderImages:
    """One folder of class folders, read lazily: root/<class>/**/<image>, labels in the order of the sorted names."""

    def __init__(self, root: Path) -> None:
        try:
            folder = torchvision_datasets.ImageFolder(str(root), loader=load_rgb)
        except OSError as fault:
            raise UserError(
                f"{root} cannot be used as a folder of classes ({fault}): put each image into its class's folder, "
                f"{root / '<class>' / '<image>'}"
            ) from fault
        self.root = root
        self.classes = folder.classes
        self._folder = folder

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._folder[index]
        return image, label

    def describe(self, index: int) -> str:
        """Return the file's path."""
        return str(self._folder.samples[index][0])

    def digest(self) -> str:
        """Return the SHA-256 of the relative paths and labels; what is in the files does not count."""
        summed = hashlib.sha256()
        for path, label in self._folder.samples:
            summed.update(f"{path[len(str(self._folder.root)) :]}\0{label}\n".encode())
        return summed.hexdigest()


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
