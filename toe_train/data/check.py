"""Look over a data set before a run spends hours on it: one readable line a fault, with the path and the remedy.

For an image folder only directories are listed and a sample of the images decoded, so that the check at a run's start
takes seconds on ImageNet; the full check decodes every image in all processor cores.
"""

import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from toe_train.data.labels.files import TokenLabelFiles
from toe_train.data.labels.record import record_fault
from toe_train.data.sources.folder import compare_classes, shorten
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.opening import open_datasets
from toe_train.errors import NoMemory, UserError

SPLITS = ("train", "val")
FAULTS_SHOWN = 10


def check_datasets(
    kind: str,
    root: str | Path | None,
    sample: int | None = 64,
    progress: bool = False,
    label_root: str | Path | None = None,
    label_geometry: str = "full",
) -> list[str]:
    """Return the faults found, none for a healthy data set.

    sample: images decoded in each of train and val, always the same ones; None decodes all, and also reports files
    that would be ignored. progress: show a bar while decoding. label_root, label_geometry: folder of an image folder's
    token labels and what part of an image a map covers; those of the same training images are read. The digits have
    nothing to check; CIFAR's files are verified by their checksums, so fetch them with
    `open_datasets(..., download=True)` first where that is wanted.
    """
    if kind != "image_folder":
        return _faults_of_opening(kind, root)
    if root is None:
        return ["data kind image_folder needs data.root: the folder that holds train/ and val/"]
    try:
        faults = _check_image_folder(Path(root), sample, progress)
        if label_root is not None and (train := Path(root) / "train").is_dir():
            faults += _check_labels(Path(label_root), label_geometry, train, sample, progress)
        return faults
    except PermissionError as fault:
        return [f"{fault.filename} cannot be listed ({fault.strerror}): give this user the right to read it"]


def require_healthy(
    kind: str,
    root: str | Path | None,
    sample: int | None = 64,
    label_root: str | Path | None = None,
    label_geometry: str = "full",
) -> None:
    """Raise UserError with the first faults that `check_datasets` finds, and the number of the rest."""
    faults = check_datasets(kind, root, sample, label_root=label_root, label_geometry=label_geometry)
    if faults:
        shown = faults[:FAULTS_SHOWN]
        if len(faults) > FAULTS_SHOWN:
            shown.append(f"and {len(faults) - FAULTS_SHOWN} more: `toe-tools doctor --config FILE` lists them all")
        raise UserError("\n".join(shown))


def _faults_of_opening(kind: str, root: str | Path | None) -> list[str]:
    try:
        open_datasets(kind, root)
    except UserError as fault:
        return [str(fault)]
    return []


def _check_image_folder(folder: Path, sample: int | None, progress: bool) -> list[str]:
    if not folder.is_dir():
        return [f"{folder} is not a folder: set data.root to the folder that holds train/ and val/"]
    missing = [split for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        return [_missing_splits(folder, missing)]
    classes = {split: _class_names(folder / split) for split in SPLITS}
    faults = [fault for split in SPLITS for fault in _check_folders(folder / split, classes[split])]
    if all(classes.values()) and (difference := compare_classes(classes["train"], classes["val"])):
        faults.append(difference)
    images = [path for split in SPLITS for path in _choose_images(folder / split, classes[split], sample)]
    faults += _faults_of_each(images, _fault_of_image, sample is None, progress)
    if sample is None:
        faults += [fault for split in SPLITS for fault in _ignored(folder / split, classes[split])]
    return faults


def _missing_splits(root: Path, missing: list[str]) -> str:
    fault = (
        "data.root must hold train/<class>/<image> and val/<class>/<image>, as ImageNet does, "
        f"and {root} has no {' and no '.join(missing)}"
    )
    if all((root.parent / split).is_dir() for split in SPLITS):
        return f"{fault}: did you mean its parent, {root.parent}?"
    present = shorten(sorted(entry.name for entry in os.scandir(root))) or "nothing"
    return f"{fault} (it holds {present}): create or rename the folders"


def _class_names(split: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir())


def _check_folders(split: Path, classes: list[str]) -> Iterator[str]:
    """Yield the faults that listing the folders of train or val shows."""
    if not classes:
        loose = next((entry.name for entry in os.scandir(split) if _is_image(entry.name)), None)
        if loose is None:
            yield f"{split} holds no class folders and no images: put each class's images into {split / '<class>'}/"
        else:
            yield (
                f"{split} is flat: images such as {loose} lie directly in it; move each into the folder of its class, "
                f"{split / '<class>' / loose} (for ImageNet's validation images the usual "
                "script is valprep.sh of soumith/imagenetloader.torch)"
            )
        return
    empty = [name for name in classes if next(_image_files(split / name), None) is None]
    if len(empty) == len(classes):
        yield f"{split} holds no images: all {len(classes)} class folders are empty; fill them"
    elif empty:
        yield (
            f"{len(empty)} of {len(classes)} class folders of {split} hold no images: {shorten(empty)}; "
            "fill them, or remove them from both train and val"
        )


def _choose_images(split: Path, classes: list[str], sample: int | None) -> Iterator[Path]:
    """Yield all images, or about `sample`: from as many classes as possible, the same ones at each call."""
    if sample is None or not classes:
        yield from (path for name in classes for path in _image_files(split / name))
        return
    choice = random.Random(0)
    chosen = choice.sample(classes, min(sample, len(classes)))
    for name in sorted(chosen):
        images = sorted(_image_files(split / name))
        yield from choice.sample(images, min(-(-sample // len(chosen)), len(images)))


def _check_labels(root: Path, geometry: str, train: Path, sample: int | None, progress: bool) -> list[str]:
    """Return the faults of the label files of the training images that `sample` chooses."""
    if not root.is_dir():
        return [f"{root} is not a folder: set token_labels.root to the folder that holds <class>/<image>.pt"]
    classes = _class_names(train)
    if fault := record_fault(root, geometry, classes):
        return [fault]
    files, label_of = TokenLabelFiles(root, classes), {name: label for label, name in enumerate(classes)}
    images = [(image, label_of[image.relative_to(train).parts[0]]) for image in _choose_images(train, classes, sample)]
    faults = list(_shared_labels(files, images)) if sample is None else []
    missing = [str(path.relative_to(root)) for image in images if not (path := files.path(*image)).is_file()]
    if missing:
        faults.append(
            f"{len(missing)} of {len(images)} training images that were looked at have no label file in {root}: "
            f"{shorten(missing)}; make them with `toe-tools labels`, or set token_labels.root to the folder that holds "
            "them"
        )
    present = [image for image in images if files.path(*image).is_file()]
    # The first one's size is what all are held against, in other processes too.
    first = _collect(map(partial(_fault_of_labels, files), present[:1]), 1, False)
    return faults + first + _faults_of_each(present[1:], partial(_fault_of_labels, files), sample is None, progress)


def _shared_labels(files: TokenLabelFiles, images: list[tuple[Path, int]]) -> Iterator[str]:
    """Yield a line on images that one label file would have to serve."""
    uses = Counter(files.path(*image) for image in images)
    sharing = [str(image[0]) for image in images if uses[files.path(*image)] > 1]
    if sharing:
        yield (
            f"{len(sharing)} training images share their label file with another, as a name counts up to its first "
            f"'.': {shorten(sharing)}; rename them"
        )


def _faults_of_each(
    items: list[Any], fault_of: Callable[[Any], str | None], parallel: bool, progress: bool
) -> list[str]:
    if not parallel or len(items) < 1000:
        return _collect(map(fault_of, items), len(items), progress)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        return _collect(pool.imap(fault_of, items, chunksize=32), len(items), progress)


def _collect(results: Iterable[str | None], total: int, progress: bool) -> list[str]:
    bar = tqdm(results, desc="checking files", unit="file", total=total, disable=not progress)
    return [fault for fault in bar if fault is not None]


def _fault_of_labels(files: TokenLabelFiles, item: tuple[Path, int]) -> str | None:
    try:
        files.read(*item)
    except UserError as fault:
        return str(fault)
    return None


def _fault_of_image(path: Path) -> str | None:
    try:
        load_rgb(path)
    except (UserError, NoMemory) as fault:
        return str(fault)
    return None


def _ignored(split: Path, classes: list[str]) -> Iterator[str]:
    """Yield a line on the files that training would pass over: of another type, or outside the class folders."""
    outside = [entry.name for entry in os.scandir(split) if entry.is_file()] if classes else []
    if outside:
        yield f"{split} holds {len(outside)} files outside its class folders, which are ignored: {shorten(outside)}"
    for name in classes:
        others = [str(path.relative_to(split)) for path in _files(split / name) if not _is_image(path.name)]
        if others:
            yield (
                f"{split / name} holds {len(others)} files that are ignored, as their suffix is no image's: "
                f"{shorten(others)}; known are {' '.join(IMG_EXTENSIONS)}"
            )


def _image_files(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if _is_image(path.name))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a class, folders within it included, as torchvision's ImageFolder finds them."""
    for base, _, names in os.walk(folder, followlinks=True):
        yield from (Path(base) / name for name in names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)
