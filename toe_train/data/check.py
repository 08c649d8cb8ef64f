"""Look over a data set before a run spends hours on it: one readable line a fault, with the path and the remedy.

For an image folder only directories are listed and a sample of the images decoded, so that the check at a run's start
takes seconds on ImageNet; the full check decodes every image in all processor cores.
"""

import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from toe_train.data.datasets import compare_classes, open_datasets, shorten
from toe_train.data.images import load_rgb
from toe_train.errors import UserError

SPLITS = ("train", "val")
FAULTS_SHOWN = 10


def check_datasets(kind: str, root: str | Path | None, sample: int | None = 64, progress: bool = False) -> list[str]:
    """Return the faults found, none for a healthy data set.

    sample: images decoded in each of train and val, always the same ones; None decodes all, and also reports files
    that would be ignored. progress: show a bar while decoding. The digits have nothing to check; CIFAR's files are
    verified by their checksums, so fetch them with `open_datasets(..., download=True)` first where that is wanted.
    """
    if kind != "image_folder":
        return _faults_of_opening(kind, root)
    if root is None:
        return ["data kind image_folder needs data.root: the folder that holds train/ and val/"]
    try:
        return _check_image_folder(Path(root), sample, progress)
    except PermissionError as fault:
        return [f"{fault.filename} cannot be listed ({fault.strerror}): give this user the right to read it"]


def require_healthy(kind: str, root: str | Path | None, sample: int | None = 64) -> None:
    """Raise UserError with the first faults that `check_datasets` finds, and the number of the rest."""
    faults = check_datasets(kind, root, sample)
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
    images = [
        path for split in SPLITS for path in _choose_images(folder / split, classes[split], sample, random.Random(0))
    ]
    faults += _undecodable(images, parallel=sample is None, progress=progress)
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


def _choose_images(split: Path, classes: list[str], sample: int | None, choice: random.Random) -> Iterator[Path]:
    """Yield all images, or about `sample`: from as many classes as possible, the same ones at each call."""
    if sample is None or not classes:
        yield from (path for name in classes for path in _image_files(split / name))
        return
    chosen = choice.sample(classes, min(sample, len(classes)))
    for name in sorted(chosen):
        images = sorted(_image_files(split / name))
        yield from choice.sample(images, min(-(-sample // len(chosen)), len(images)))


def _undecodable(images: list[Path], parallel: bool, progress: bool) -> list[str]:
    if not parallel or len(images) < 1000:
        return _collect(map(_fault_of, images), len(images), progress)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        return _collect(pool.imap(_fault_of, images, chunksize=32), len(images), progress)


def _collect(results: Iterable[str | None], total: int, progress: bool) -> list[str]:
    bar = tqdm(results, desc="checking images", unit="image", total=total, disable=not progress)
    return [fault for fault in bar if fault is not None]


def _fault_of(path: Path) -> str | None:
    try:
        load_rgb(path)
    except UserError as fault:
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
