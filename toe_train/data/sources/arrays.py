"""Images held in memory: CIFAR, and the digits of scikit-learn."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets as torchvision_datasets

from toe_train.errors import UserError

DIGITS_VAL_EVERY = 5  # every fifth image of each digit is for validation


class ArrayImages:
    """Images held in memory: pixels (n, H, W, 3) uint8, labels (n,)."""

    def __init__(self, name: str, pixels: np.ndarray, labels: list[int], classes: list[str]) -> None:
        assert len(pixels) == len(labels), (len(pixels), len(labels))
        self.classes = classes
        self._name = name
        self._pixels = pixels
        self._labels = labels
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]), self._labels[index]

    def describe(self, index: int) -> str:
        """Return the image's number and the data set's name."""
        return f"image {index} of {self._name}"

    def require_here(self) -> None:
        """They are in memory."""

    def labels(self) -> np.ndarray:
        """Return the label of each image, (n,) int64."""
        return np.array(self._labels, np.int64)

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return [int(count) for count in np.bincount(self._labels, minlength=len(self.classes))]

    def notes(self) -> list[str]:
        """Nothing is passed over."""
        return []

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and labels; it is summed up once."""
        if self._digest is None:
            summed = hashlib.sha256(np.ascontiguousarray(self._pixels).data)
            summed.update(repr(self._labels).encode())
            self._digest = summed.hexdigest()
        return self._digest


def open_cifar(kind: str, root: Path, download: bool) -> tuple[ArrayImages, ArrayImages]:
    """Return (train, val) of CIFAR-10 or -100; see `open_datasets`."""
    opener = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[kind]
    try:
        parts = [opener(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as fault:
        if download:
            remedy = f"it could not be fetched ({fault}); check the connection and that {root} can be written, or"
        else:
            remedy = "set data.download=true to fetch it, set data.root to the folder that holds it, or"
        raise UserError(
            f"{kind} is missing or damaged: {root / opener.base_folder} is not as it should be; {remedy} "
            f"unpack {opener.url} in {root} by hand"
        ) from fault
    train, val = (
        ArrayImages(f"{kind} ({split})", part.data, part.targets, part.classes)
        for split, part in zip(("train", "val"), parts, strict=True)
    )
    return train, val


def open_digits() -> tuple[ArrayImages, ArrayImages]:
    """Return (train, val) of the digits."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)  # (1797, 8, 8), was 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    classes = [str(name) for name in digits.target_names]
    rank_in_class = np.zeros(len(grey), dtype=int)
    for label in range(len(classes)):
        members = digits.target == label
        rank_in_class[members] = np.arange(members.sum())
    is_val = rank_in_class % DIGITS_VAL_EVERY == 0  # the same for every seed
    train, val = (
        ArrayImages(f"digits ({split})", pixels[chosen], digits.target[chosen].tolist(), classes)
        for split, chosen in (("train", ~is_val), ("val", is_val))
    )
    return train, val
