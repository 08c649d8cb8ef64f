"""Train and val images of a data set, by its kind."""

import os
from pathlib import Path
from typing import NamedTuple

from toe_train.data.sources.arrays import open_cifar, open_digits
from toe_train.data.sources.coco import CocoPlaces, open_coco
from toe_train.data.sources.folder import FolderImages, IndexedImages
from toe_train.data.sources.listing import SPLITS, ClassFolders
from toe_train.data.sources.lists import ListImages
from toe_train.data.sources.names import compare_classes, legible, shorten
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.source import ImageSource
from toe_train.data.sources.tar import open_tars
from toe_train.errors import UserError

FILE_KINDS = ("image_folder", "tar", "list")  # the same images in other forms
KINDS = (*FILE_KINDS, "coco", "cifar10", "cifar100", "digits")


class Labelling(NamedTuple):
    """Where the labels of image files are, if not in the names of folders.

    train_list, val_list: files of paths and labels, see `read_list`. label_key: of the .json files of shards.
    """

    train_list: str | Path | None = None
    val_list: str | Path | None = None
    label_key: str = "label"


BY_FOLDERS = Labelling()  # or as an archive has them within it


def open_datasets(
    kind: str,
    root: str | Path | None,
    download: bool = False,
    exif_orientation: ExifOrientation = "ignore",
    labelling: Labelling | CocoPlaces = BY_FOLDERS,
    anew: bool = False,
) -> tuple[ImageSource, ImageSource]:
    """Return (train, val).

    kind: "image_folder" (root/train and root/val in ImageNet's layout), "tar" (archives, see `open_tars`), "list"
    (images that lists name; train or val without a list is a folder of class folders), "coco" (images with boxes, at
    COCO's own places below root or those that `labelling` gives), "cifar10" and "cifar100" (torchvision's files under
    root; `download` fetches them, which only one process at a time may do), "digits" (the 1,797 images of 8 x 8 pixels
    that come with scikit-learn; root is not used). exif_orientation: of image files. labelling: of archives, lists and
    coco. anew: list folders and archives, whatever is remembered of them.

    Raises UserError where the data is missing, damaged or inconsistent, or has a single class.
    """
    if kind == "digits":
        return open_digits()
    if kind not in KINDS:
        raise UserError(f"data kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    if root is None:
        raise UserError(f"data kind {kind} needs data.root: the folder that holds the data")
    if kind == "coco":
        return open_coco(Path(root).expanduser(), labelling if isinstance(labelling, CocoPlaces) else CocoPlaces())
    if kind not in FILE_KINDS:
        return open_cifar(kind, Path(root), download)
    assert isinstance(labelling, Labelling)
    train = open_split(kind, Path(root), "train", exif_orientation, labelling, anew)
    val = open_split(kind, Path(root), "val", exif_orientation, labelling, anew, train.classes)
    if fault := compare_classes(train.classes, val.classes) or single_class(train):
        raise UserError(fault)
    return train, val


def open_split(
    kind: str,
    root: Path,
    split: str,
    exif_orientation: ExifOrientation,
    labelling: Labelling,
    anew: bool,
    known: list[str] | None = None,
) -> IndexedImages:
    """Return train or val of image files; see `open_datasets`. known: train's classes, where these are val's."""
    label_list = labelling.train_list if split == "train" else labelling.val_list
    if kind == "tar":
        return open_tars(root, split, label_list, labelling.label_key, known, exif_orientation, anew)
    if kind == "list" and label_list is not None:
        return ListImages(root, split, label_list, known, exif_orientation)
    return FolderImages(root / split, exif_orientation, anew)


def single_class(images: IndexedImages) -> str | None:
    """Return the fault of images of a single class, and what it likely comes from; None where there are more."""
    if isinstance(images, FolderImages):
        return only_class(images.root, images.classes)
    if len(images.classes) == 1:
        return (
            f"{images.root} holds a single class, {legible(images.classes[0])}, and there is nothing to learn from one"
        )
    return None


def require_outside(output: str | Path, root: str | Path) -> None:
    """Refuse a folder for a command's files that lies in a split of an image folder, where it would count as a class.

    output: the folder. root: of the data set, or of one split.

    Raises UserError where it does.
    """
    inside, whole = Path(os.path.realpath(output)), Path(os.path.realpath(root))
    splits = [whole / split for split in SPLITS if (whole / split).is_dir()] or [whole]
    for split in splits:
        if inside.is_relative_to(split):
            raise UserError(
                f"{output} lies in {split}, whose folders are the classes of the data set: give another --output, "
                "beside the data"
            )


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
