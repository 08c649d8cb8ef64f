"""Train and val images of a data set, by its kind."""

from pathlib import Path

from toe_train.data.sources.arrays import open_cifar, open_digits
from toe_train.data.sources.coco import CocoPlaces, open_coco
from toe_train.data.sources.folder import FolderImages
from toe_train.data.sources.listing import SPLITS, ClassFolders
from toe_train.data.sources.names import compare_classes, legible, shorten
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.source import ImageSource
from toe_train.errors import UserError

KINDS = ("image_folder", "coco", "cifar10", "cifar100", "digits")


def open_datasets(
    kind: str,
    root: str | Path | None,
    download: bool = False,
    exif_orientation: ExifOrientation = "ignore",
    places: CocoPlaces | None = None,
) -> tuple[ImageSource, ImageSource]:
    """Return (train, val).

    kind: "image_folder" (root/train and root/val in ImageNet's layout), "coco" (images and annotation files at `places`
    below root; images with boxes), "cifar10" and "cifar100" (torchvision's files
    under root; `download` fetches them, which only one process at a time may do), "digits" (the 1,797 images of
    8 x 8 pixels that come with scikit-learn; root is not used). exif_orientation: of an image folder's files.

    Raises UserError where the data is missing, damaged or inconsistent, or has a single class.
    """
    if kind == "digits":
        return open_digits()
    if kind not in KINDS:
        raise UserError(f"data kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if root is None:
        raise UserError(f"data kind {kind} needs data.root: the folder that holds the data")
    if kind == "coco":
        return open_coco(Path(root).expanduser(), places or CocoPlaces())
    if kind == "image_folder":
        train, val = (FolderImages(Path(root) / split, exif_orientation) for split in SPLITS)
        fault = compare_classes(train.classes, val.classes) or only_class(train.root, train.classes)
        if fault:
            raise UserError(fault)
        return train, val
    return open_cifar(kind, Path(root), download)


def only_class(root: Path, classes: list[str]) -> str | None:
    """Return the fault of a folder with a single class, and what it likely comes from; None where there are more."""
    if len(classes) != 1:
        return None
    (name,), listing = classes, ClassFolders(root)
    fault = f"{root} holds a single class, {legible(name)}{listing.aside()}, and there is nothing to learn from one"
    below, inner = listing.inner(name)
    if inner:
        return (
            f"{fault}: its images lie in folders of {root / below}, which look like the classes ({shorten(inner)}); "
            f"move these to {root}, in train and in val"
        )
    return f"{fault}: put the images of each class into a folder of its own, {root / '<class>' / '<image>'}"
