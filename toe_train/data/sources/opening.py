"""Train and val images of a data set, by its kind."""

from pathlib import Path

from toe_train.data.sources.arrays import open_cifar, open_digits
from toe_train.data.sources.folder import FolderImages, compare_classes
from toe_train.data.sources.source import ImageSource
from toe_train.errors import UserError

KINDS = ("image_folder", "cifar10", "cifar100", "digits")


def open_datasets(kind: str, root: str | Path | None, download: bool = False) -> tuple[ImageSource, ImageSource]:
    """Return (train, val).

    kind: "image_folder" (root/train and root/val in ImageNet's layout), "cifar10" and "cifar100" (torchvision's files
    under root; `download` fetches them, which only one process at a time may do), "digits" (the 1,797 images of
    8 x 8 pixels that come with scikit-learn; root is not used).

    Raises UserError where the data is missing, damaged or inconsistent.
    """
    if kind == "digits":
        return open_digits()
    if kind not in KINDS:
        raise UserError(f"data kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if root is None:
        raise UserError(f"data kind {kind} needs data.root: the folder that holds the data")
    if kind == "image_folder":
        train, val = FolderImages(Path(root) / "train"), FolderImages(Path(root) / "val")
        if fault := compare_classes(train.classes, val.classes):
            raise UserError(fault)
        return train, val
    return open_cifar(kind, Path(root), download)
