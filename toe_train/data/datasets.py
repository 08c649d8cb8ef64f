"""The data sets: a common face for image folders, CIFAR and the digits, and the two wrappers that loaders read.

Sources give (PIL RGB image, label); TrainSet and EvalSet add the transform. Files are checked in check.py.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets as torchvision_datasets

from toe_train.data.device_augment import View
from toe_train.data.images import load_rgb
from toe_train.data.joint_transform import JointTransform
from toe_train.data.order import SampleKey
from toe_train.data.pixels import Pixels
from toe_train.data.randomness import derive_seed, preserved, reseed
from toe_train.data.skipping import SkippedImages
from toe_train.data.token_labels import TokenLabelFiles, TokenMap, TokenTarget
from toe_train.data.transforms import Transform, TwoSizes
from toe_train.errors import UserError

KINDS = ("image_folder", "cifar10", "cifar100", "digits")
NAMES_SHOWN = 5  # of a longer list in a message
NOT_COUNTED = -1  # label of an image that evaluation leaves out
MAX_SUBSTITUTES = 20
DIGITS_VAL_EVERY = 5  # every fifth image of each digit is for validation


class ImageSource(Protocol):
    """A labelled collection of images; `classes[label]` is the name of a label."""

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def describe(self, index: int) -> str:
        """Name an image so that a person finds it."""
        ...

    def digest(self) -> str:
        """Sum up which images stand in which order under which labels; the same wherever the data set lies."""
        ...


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


class ArrayImages:
    """Images held in memory: pixels (n, H, W, 3) uint8, labels (n,)."""

    def __init__(self, name: str, pixels: np.ndarray, labels: list[int], classes: list[str]) -> None:
        assert len(pixels) == len(labels), (len(pixels), len(labels))
        self.classes = classes
        self._name = name
        self._pixels = pixels
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]), self._labels[index]

    def describe(self, index: int) -> str:
        """Return the image's number and the data set's name."""
        return f"image {index} of {self._name}"

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and labels."""
        return hashlib.sha256(self._pixels.tobytes() + repr(self._labels).encode()).hexdigest()


def open_datasets(kind: str, root: str | Path | None, download: bool = False) -> tuple[ImageSource, ImageSource]:
    """Return (train, val).

    kind: "image_folder" (root/train and root/val in ImageNet's layout), "cifar10" and "cifar100" (torchvision's files
    under root; `download` fetches them, which only one process at a time may do), "digits" (the 1,797 images of
    8 x 8 pixels that come with scikit-learn; root is not used).

    Raises UserError where the data is missing, damaged or inconsistent.
    """
    if kind == "digits":
        return _open_digits()
    if kind not in KINDS:
        raise UserError(f"data kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if root is None:
        raise UserError(f"data kind {kind} needs data.root: the folder that holds the data")
    if kind == "image_folder":
        train, val = FolderImages(Path(root) / "train"), FolderImages(Path(root) / "val")
        if fault := compare_classes(train.classes, val.classes):
            raise UserError(fault)
        return train, val
    return _open_cifar(kind, Path(root), download)


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


def _open_cifar(kind: str, root: Path, download: bool) -> tuple[ImageSource, ImageSource]:
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


def _open_digits() -> tuple[ImageSource, ImageSource]:
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


class _Read(NamedTuple):
    """An image as it is in the data set, at `index`."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    image: Image.Image
    label: int
    cells: TokenMap | None


Shown = Pixels | View  # an image, made or to be made


class TrainSet(Dataset[tuple[Shown, int | TokenTarget]]):
    """Augmented training images with their classes, addressed by place in the run and not by index.

    `transform` ends in `Pixels`, see `ending_in_pixels`, or is a `DrawView`. With `labels`, of an image folder, a
    `TokenTarget` takes the class's place and `transform` is a `JointTransform`.

    What a transform draws depends on (seed, epoch, global position) only; the global generators of the process are left
    as they were.

    An unreadable image or label file raises UserError; with `skipped` the image is noted there and another one, label
    included, takes its place: a choice of (seed, epoch, global position) too. MAX_SUBSTITUTES unreadable ones in a row
    raise UserError.
    """

    def __init__(
        self,
        dataset: ImageSource,
        transform: Callable[[Image.Image], Shown] | JointTransform,
        seed: int,
        skipped: SkippedImages | None = None,
        labels: TokenLabelFiles | None = None,
    ) -> None:
        self.dataset = dataset
        self._transform: Callable[..., Any] = transform
        self._seed = seed
        self._skipped = skipped
        self._labels = labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Shown, int | TokenTarget]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[SampleKey]) -> list[tuple[Shown, int | TokenTarget]]:
        """A batch of them, for which an image that stands in it several times is read and decoded once."""
        samples: dict[SampleKey, tuple[Shown, int | TokenTarget]] = {}
        held = None
        with preserved():
            for key in sorted(keys):  # by index
                if held is None or held.index != key.index:  # a substitute's index is another: drawn anew each time
                    held = self._read(key)
                samples[key] = self._augmented(key, held)
        return [samples[key] for key in keys]

    def _augmented(self, key: SampleKey, read: _Read) -> tuple[Shown, int | TokenTarget]:
        _, image, label, cells = read
        reseed(derive_seed(self._seed, "sample", key.epoch, key.position))
        if cells is None:
            return self._transform(image), label
        shown, target = self._transform(image, cells, label)
        return shown, target

    def _read(self, key: SampleKey) -> _Read:
        index = key.index
        for attempt in range(MAX_SUBSTITUTES):
            try:
                image, label = self.dataset[index]
                if self._labels is None:
                    return _Read(index, image, label, None)
                return _Read(index, image, label, self._labels.read(self.dataset.describe(index), label))
            except UserError as fault:
                if self._skipped is None:
                    raise
                self._skipped.note(self.dataset.describe(index), str(fault))
            index = derive_seed(self._seed, "substitute", key.epoch, key.position, attempt) % len(self.dataset)
        raise UserError(
            f"{MAX_SUBSTITUTES} images in a row could not be read; `toe-tools doctor --config FILE` lists all"
        )


class EvalSet(Dataset[tuple[Any, int]]):
    """Evaluation images, (C, S, S) float32 or a pair of them, by index; the transform draws nothing.

    An unreadable image raises UserError; with `skipped` it is noted there and comes as a black one with the label
    NOT_COUNTED.
    """

    def __init__(
        self, dataset: ImageSource, transform: Transform | TwoSizes, skipped: SkippedImages | None = None
    ) -> None:
        self.dataset = dataset
        self._transform = transform
        self._skipped = skipped

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, label = self.dataset[index]
        except UserError as fault:
            if self._skipped is None:
                raise
            self._skipped.note(self.dataset.describe(index), str(fault))
            image, label = Image.new("RGB", (64, 64)), NOT_COUNTED
        return self._transform(image), label
