"""The section of the images: in which form they come, where they are, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toe_train.recipes.fields import INCIDENTAL, Folder, Forms, Integer, PathBelow, Section


class DataConfig(Section):
    """Where the images are."""

    # A folder's images are the same ones in archives and by a list: a run may go on from one form to another.
    kind: Annotated[
        Literal["image_folder", "tar", "list", "coco", "cifar10", "cifar100", "digits"],
        Forms(("image_folder", "tar", "list")),
    ] = "image_folder"
    # Holds train/<class>/* and val/<class>/* for an image folder, train.tar and val.tar for archives; unused by digits.
    root: Annotated[Folder, INCIDENTAL] = "/data/imagenet"
    # Files of lines path,label of a list's images, and of images in archives that lie in no class folders.
    train_list: Annotated[Folder | None, INCIDENTAL] = None
    val_list: Annotated[Folder | None, INCIDENTAL] = None
    label_key: Annotated[str, INCIDENTAL] = "label"  # of the label in a shard's .json files
    relist: Annotated[bool, INCIDENTAL] = False  # look through folders and archives, whatever is remembered of them
    # Of coco, below root or absolute.
    train_folder: Annotated[PathBelow, INCIDENTAL] = "train2017"
    val_folder: Annotated[PathBelow, INCIDENTAL] = "val2017"
    train_annotations: Annotated[PathBelow, INCIDENTAL] = "annotations/instances_train2017.json"
    val_annotations: Annotated[PathBelow, INCIDENTAL] = "annotations/instances_val2017.json"
    workers: Annotated[Integer, Field(ge=0, le=512), INCIDENTAL] = 8  # loader processes per training process
    download: Annotated[bool, INCIDENTAL] = False  # CIFAR only
    # What an epoch shows: shuffled, each image; balanced, each class equally often, however many images it has.
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    # Images of each split that are decoded before a run starts.
    check_sample: Annotated[Integer, Field(ge=0), INCIDENTAL] = 256
    # Of an image folder: images are taken as they are stored (DeiT), or turned as their EXIF blocks say.
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    # An unreadable image ends the run, or is passed over (listed in the run folder, another in its place).
    on_error: Annotated[Literal["fail", "skip"], INCIDENTAL] = "fail"
    max_skipped: Annotated[Integer, Field(ge=0), INCIDENTAL] = (
        100  # different images that on_error: skip passes over, at most
    )

    @property
    def of_files(self) -> bool:
        """Whether the images are files, in whatever form, and not arrays."""
        return self.kind in ("image_folder", "tar", "list")
