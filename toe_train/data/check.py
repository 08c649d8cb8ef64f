"""Look over a data set before a run spends hours on it: one readable line a fault, with the path and the remedy.

For an image folder only directories are listed and a sample of the images decoded, so that the check at a run's start
takes seconds on ImageNet; the full check decodes every image in all processor cores.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from toe_train.data.check_files import look_at_files
from toe_train.data.coco_check import look_at_coco
from toe_train.data.findings import Findings, Seen
from toe_train.data.labels.check import check_labels
from toe_train.data.sources.coco import CocoPlaces
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.index import Index
from toe_train.data.sources.listing import SPLITS, index_of_folder, is_left_behind
from toe_train.data.sources.names import compare_classes, shorten
from toe_train.data.sources.opening import BY_FOLDERS, Labelling, only_class, open_datasets
from toe_train.data.sources.orientation import UPRIGHT, ExifOrientation, orientation_of
from toe_train.data.sources.span import Span
from toe_train.data.spread import spread
from toe_train.errors import NoMemory, UserError

FAULTS_SHOWN = 10
TURNED: dict[ExifOrientation, str] = {
    "ignore": "have an EXIF orientation; a run takes them as they are stored, turned or mirrored, as DeiT does, and "
    "turns them upright with data.exif_orientation=apply, as configs/photos.yaml does",
    "apply": "have an EXIF orientation; the run turns them upright, and with data.exif_orientation=ignore takes them "
    "as they are stored, as DeiT does",
}


def examine(
    kind: str,
    root: str | Path | None,
    sample: int | None = None,
    progress: bool = False,
    label_root: str | Path | None = None,
    label_geometry: str = "full",
    exif_orientation: ExifOrientation = "ignore",
    labelling: Labelling | CocoPlaces = BY_FOLDERS,
    anew: bool = False,
) -> Findings:
    """Return what is found of a data set; a healthy one has no faults.

    sample: images decoded in each of train and val, always the same ones; None decodes all. progress: show a bar while
    decoding. label_root, label_geometry: folder of an image folder's token labels and what part of an image a map
    covers; those of the same training images are read. exif_orientation: what the run does about it. The digits have
    nothing to check; CIFAR's files are verified by their checksums, so fetch them with
    `open_datasets(..., download=True)` first where that is wanted. labelling, anew: see `open_datasets`.
    """
    found = Findings()
    if kind in ("tar", "list") and root is not None:
        assert isinstance(labelling, Labelling)
        look_at_files(
            kind,
            Path(root).expanduser(),
            labelling,
            anew,
            sample,
            progress,
            label_root,
            label_geometry,
            exif_orientation,
            found,
            _look_at,
        )
        return found
    if kind not in ("image_folder", "coco"):
        _look_at_arrays(kind, root, found)
        return found
    if root is None:
        found.add(f"data kind {kind} needs data.root: the folder that holds the images of train and val")
        return found
    try:
        if kind == "coco":
            places = labelling if isinstance(labelling, CocoPlaces) else CocoPlaces()
            look_at_coco(Path(root).expanduser(), places, sample, progress, found)
            return found
        _look_at_folder(
            Path(root).expanduser(), sample, progress, label_root, label_geometry, exif_orientation, anew, found
        )
    except PermissionError as fault:
        found.classes.clear()  # a part of them would mislead
        found.add(f"{fault.filename} cannot be listed ({fault.strerror}): give this user the right to read it")
    return found


def check_datasets(
    kind: str,
    root: str | Path | None,
    sample: int | None = 64,
    progress: bool = False,
    label_root: str | Path | None = None,
    label_geometry: str = "full",
    exif_orientation: ExifOrientation = "ignore",
    labelling: Labelling | CocoPlaces = BY_FOLDERS,
    anew: bool = False,
) -> list[str]:
    """Return the faults that `examine` finds, a line each."""
    found = examine(kind, root, sample, progress, label_root, label_geometry, exif_orientation, labelling, anew)
    return [fault.text for fault in found.faults]


def require_healthy(
    kind: str,
    root: str | Path | None,
    sample: int | None = 64,
    label_root: str | Path | None = None,
    label_geometry: str = "full",
    exif_orientation: ExifOrientation = "ignore",
    labelling: Labelling | CocoPlaces = BY_FOLDERS,
    anew: bool = False,
) -> None:
    """Raise UserError with the first faults that `check_datasets` finds, and the number of the rest."""
    faults = check_datasets(kind, root, sample, False, label_root, label_geometry, exif_orientation, labelling, anew)
    if faults:
        shown = faults[:FAULTS_SHOWN]
        if len(faults) > FAULTS_SHOWN:
            # Of a folder alone doctor cannot tell that files beside it say what is in the images.
            named = "--config FILE" if kind in ("coco", "list") or label_root is not None else root
            shown.append(f"and {len(faults) - FAULTS_SHOWN} more: `toe-tools doctor {named}` lists them all")
        raise UserError("\n".join(shown))


def _look_at_arrays(kind: str, root: str | Path | None, found: Findings) -> None:
    try:
        sources = open_datasets(kind, root)
    except UserError as fault:
        found.add(str(fault))
        return
    for split, source in zip(SPLITS, sources, strict=True):
        for name, count in zip(source.classes, source.counts(), strict=True):
            found.classes[name].counts[split] = count


def _look_at_folder(
    folder: Path,
    sample: int | None,
    progress: bool,
    label_root: str | Path | None,
    label_geometry: str,
    exif_orientation: ExifOrientation,
    anew: bool,
    found: Findings,
) -> None:
    if not folder.is_dir():
        found.add(f"{folder} is not a folder: set data.root to the folder that holds train/ and val/")
        return
    present = [split for split in SPLITS if (folder / split).is_dir()]
    if len(present) < len(SPLITS):
        found.add(_missing_splits(folder, [split for split in SPLITS if split not in present]))
    listings = {split: index_of_folder(folder / split, anew) for split in present}
    images = [
        (path, name)
        for split, listing in listings.items()
        for path, name in _list_images(folder / split, listing, split, sample, found)
    ]
    if present == list(SPLITS):
        _compare(folder, listings, found)
        _look_at_images(images, exif_orientation, sample is None, progress, found)
    if label_root is not None and "train" in listings:
        classes = listings["train"].classes
        label_of = {name: label for label, name in enumerate(classes)}
        labelled = [(path, label_of[name]) for path, name in images if (folder / "train") in path.parents]
        found.add(
            *check_labels(
                Path(label_root), label_geometry, exif_orientation, classes, labelled, sample is None, progress
            )
        )


def _compare(folder: Path, listings: dict[str, Index], found: Findings) -> None:
    train, val = (listings[split].classes for split in SPLITS)
    if train and val and (difference := compare_classes(train, val)):
        found.add(difference)
    elif fault := only_class(folder / "train", train):
        found.add(fault)


def _look_at_images(
    images: list[tuple[Path, str]],
    exif_orientation: ExifOrientation,
    whole: bool,
    progress: bool,
    found: Findings,
) -> None:
    seen = spread(partial(_look_at, exif_orientation), [path for path, _ in images], whole, progress)
    for (path, name), one in zip(images, seen, strict=True):
        found.see(path, name, one)


def _missing_splits(root: Path, missing: list[str]) -> str:
    fault = (
        "data.root must hold train/<class>/<image> and val/<class>/<image>, as ImageNet does, "
        f"and {root} has no {' and no '.join(missing)}"
    )
    if all((root.parent / split).is_dir() for split in SPLITS):
        return f"{fault}: did you mean its parent, {root.parent}?"
    inner = [entry for entry in root.iterdir() if all((entry / split).is_dir() for split in SPLITS)]
    if inner:
        return f"{fault}: did you mean {' or '.join(sorted(map(str, inner)))}?"
    present = shorten(sorted(entry.name for entry in root.iterdir() if not is_left_behind(entry.name))) or "nothing"
    return f"{fault} (it holds {present}): create or rename the folders, or let toe-tools split do it"


def _list_images(
    folder: Path, listing: Index, split: str, sample: int | None, found: Findings
) -> Iterator[tuple[Path, str]]:
    """Yield path and class of all images of train or val, or of about `sample`, and note what the listing shows.

    A sample is of as many classes as possible, and the same at each call.
    """
    classes = listing.classes
    choice = random.Random(0)
    chosen = set(classes if sample is None else choice.sample(classes, min(sample, len(classes))))
    for name in classes:
        images = listing.images(name)
        found.classes[name].counts[split] = len(images)
        if name in chosen:
            picked = list(images)
            if sample is not None:
                picked = choice.sample(picked, min(-(-sample // len(chosen)), len(picked)))
            yield from ((folder / listing.path(number), name) for number in picked)
    found.listed += listing.notes
    found.add(*_faults_of_listing(folder, listing, split, found))


def _faults_of_listing(folder: Path, listing: Index, split: str, found: Findings) -> Iterator[str]:
    """Yield the faults that listing the folders of train or val shows."""
    if not listing.classes:
        loose = next(iter(listing.loose), None)
        if loose is None:
            yield (
                f"{folder} holds no class folders and no images{listing.aside}: put each class's images into "
                f"{folder / '<class>'}/"
            )
        else:
            yield (
                f"{folder} is flat: images such as {loose} lie directly in it; move each into the folder of its class, "
                f"{folder / '<class>' / loose} (for ImageNet's validation images the usual "
                "script is valprep.sh of soumith/imagenetloader.torch)"
            )
        return
    empty = [name for name in listing.classes if not found.classes[name].counts[split]]
    if len(empty) == len(listing.classes):
        yield f"{folder} holds no images: all {len(empty)} class folders are empty{listing.aside}; fill them"
    elif empty:
        yield (
            f"{len(empty)} of {len(listing.classes)} class folders of {folder} hold no images: {shorten(empty)}"
            f"{listing.aside}; fill them, or remove them from both train and val"
        )


def _look_at(exif_orientation: ExifOrientation, path: Path | Span) -> Seen:
    """Return what one image is; what is to be counted of it is a remark."""
    try:
        size = load_rgb(path, exif_orientation).size
    except (UserError, NoMemory) as fault:
        return Seen(str(fault))
    return Seen(None, size, (TURNED[exif_orientation],) if orientation_of(path) != UPRIGHT else ())
