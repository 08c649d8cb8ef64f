"""`toe-tools doctor`: is a data set healthy? Every file is opened, every fault listed."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from toe_train import data
from toe_train.analysis.tables import table
from toe_train.build.inputs import labelling
from toe_train.cli.exits import USER_ERROR
from toe_train.cli.tool_options import MOST_CLASSES
from toe_train.errors import UserError
from toe_train.recipes import load_saved
from toe_train.runs.folder import RunFolder

NAMING = {"coco": "the annotations", "list": "the lists"}  # what names the images of a kind


@dataclass(frozen=True)
class _Asked:
    """The data set; see `examine`. may_miss: images that a run would do without. download: fetch it first."""

    kind: str
    root: str | Path | None
    label_root: str | Path | None = None
    label_geometry: str = "full"
    exif_orientation: data.ExifOrientation = "ignore"
    may_miss: int = 0
    download: bool = False
    labelling: data.Labelling | data.CocoPlaces = data.BY_FOLDERS
    relist: bool = False


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Looks and tells; returns the exit code: 0 where a run would work, though something is passed over."""
    asked = _asked(options)
    if options.remove_list and asked.kind == "tar":
        raise UserError(f"--remove-list is of files, and the images of {asked.root} are in archives: leave it out")
    if options.remove_list and asked.kind in NAMING:
        raise UserError(
            f"--remove-list is of files that a data set can do without, and {NAMING[asked.kind]} of {asked.root} name "
            "each image: leave it out, and take what cannot be read out of these"
        )
    removals = _new_file(options.remove_list) if options.remove_list else None
    if asked.download:
        data.open_datasets(asked.kind, asked.root, download=True)
    found = data.examine(
        asked.kind,
        asked.root,
        progress=sys.stderr.isatty(),
        label_root=asked.label_root,
        label_geometry=asked.label_geometry,
        exif_orientation=asked.exif_orientation,
        labelling=asked.labelling,
        anew=asked.relist,
    )
    for line in _classes(found, options.classes):
        print(line)
    for note in found.notes:
        print(f"note: {note}")
    unreadable = found.unreadable
    if removals is not None:
        _write(removals, unreadable)
    is_healthy = len(found.faults) == len(unreadable) <= asked.may_miss
    if found.faults:
        _tell(found, asked, is_healthy)
    if not is_healthy:
        return USER_ERROR
    labelled = f"; token labels of all train images in {asked.label_root}" if asked.label_root else ""
    print(f"healthy: {_counted(found)}{labelled}")
    return 0


def _asked(options: argparse.Namespace) -> _Asked:
    folders = [text for text in options.overrides if "=" not in text or os.path.isdir(text)]
    overrides = [text for text in options.overrides if text not in folders]
    if "" in folders:
        raise UserError("the folder's name is empty: give the one that holds train/ and val/")
    if len(folders) > 1:
        raise UserError(
            f"doctor looks at one folder at a time, and {' and '.join(folders)} are given: leave out all but one"
        )
    folder = Path(folders[0]) if folders else None
    if options.config is None:
        if overrides:
            raise UserError(
                f"{overrides[0]} changes a run's configuration: name it with --config FILE, or give a folder"
            )
        if folder is None:
            raise UserError(
                "name what to look at: toe-tools doctor FOLDER, which holds train/ and val/, or --config FILE"
            )
        if RunFolder(folder).holds_a_run():
            raise UserError(f"{folder} is a run folder; for its data set: toe-tools doctor --config {folder}")
        return _Asked(_kind_at(folder), folder)
    config = load_saved(options.config, overrides)
    section, labels = config.data, config.token_labels
    return _Asked(
        kind=_kind_at(folder) if folder and section.kind != "coco" else section.kind,
        root=folder or section.root,
        label_root=labels.root if labels else None,
        label_geometry=labels.geometry if labels else "full",
        exif_orientation=section.exif_orientation,
        may_miss=section.max_skipped if section.on_error == "skip" else 0,
        download=section.download and not folder,
        labelling=labelling(config),
        relist=section.relist,
    )


def _kind_at(place: Path) -> str:
    return "tar" if data.holds_archives(place) else "image_folder"


def _classes(found: data.Findings, all_of_them: bool) -> list[str]:
    """Lines on the classes: numbers of images and their sizes."""
    classes = sorted(found.classes.items())
    if len(classes) > MOST_CLASSES and not all_of_them:
        ranges = " and ".join(
            f"{min(counts)} to {max(counts)} {split}"
            for split in data.SPLITS
            if (counts := [one.counts.get(split, 0) for _, one in classes])
        )
        return [f"{len(classes)} classes of {ranges} images each; --classes lists them"]
    if not classes:
        return []
    rows = [
        (data.legible(name), *(str(one.counts.get(split, 0)) for split in data.SPLITS), _sizes(one))
        for name, one in classes
    ]
    return [table(("class", *data.SPLITS, "pixels"), rows)]


def _sizes(one: data.ClassFound) -> str:
    if one.smallest is None or one.largest is None:
        return "-"
    smallest, largest = (f"{width}x{height}" for width, height in (one.smallest, one.largest))
    return smallest if smallest == largest else f"{smallest} .. {largest}"


def _tell(found: data.Findings, asked: _Asked, is_healthy: bool) -> None:
    """Says the faults: what cannot be read, and what else is wrong."""
    broken = [fault.text for fault in found.faults if fault.file is not None]
    others = [fault.text for fault in found.faults if fault.file is None]
    if others:
        print(f"{len(others)} fault{'s' * (len(others) > 1)} in {asked.kind} {asked.root}:", *others, sep="\n  ")
    if broken:
        count = f"{len(broken)} image{'s' * (len(broken) > 1)} of {_counted(found)} cannot be read"
        passed = (
            f"; a run passes over them (data.on_error=skip, data.max_skipped={asked.may_miss})" if is_healthy else ""
        )
        print(f"{count}{passed}:", *broken, sep="\n  ")


def _counted(found: data.Findings) -> str:
    train, val = map(found.count, data.SPLITS)
    return f"{train} train and {val} val images in {len(found.classes)} classes"


def _new_file(name: str) -> Path:
    """The path of a file that can be written, and is made; what is there already stays."""
    path = Path(name)
    try:
        path.open("x").close()
    except FileExistsError:
        raise UserError(f"--remove-list {path} is there already: remove it, or name a new file") from None
    except OSError as error:
        raise UserError(f"--remove-list {path} cannot be written ({error.strerror}): name another file") from None
    return path


def _write(path: Path, images: list[Path]) -> None:
    """Writes the bytes of the paths, a line each."""
    lines = [os.fsencode(os.path.abspath(image)) for image in images]
    path.write_bytes(b"".join(line + b"\n" for line in lines if b"\n" not in line))
    print(
        f"{path}: {len(lines)} images to remove, one a line: xargs -d '\\n' rm -- < {path}"
        if lines
        else f"{path}: empty"
    )
    for line in filter(lambda line: b"\n" in line, lines):
        print(f"  but for {os.fsdecode(line)!r}, whose name is more than a line: remove it by hand")
