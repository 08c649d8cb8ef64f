"""`toe-tools pack`: a smaller copy of images, as a folder or as archives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toe_train import data
from toe_train.cli.exits import USER_ERROR
from toe_train.errors import UserError


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Packs the images; returns the exit code: 0 where there is a copy, though an image was left out of it."""
    output, packing = Path(options.output), data.Packing(options.short_side, options.quality)
    packed = _pack(options, output, packing)
    kind = " data.kind=tar" if options.to == "tar" else ""
    print(f"{output}: {packed.written} images written, {packed.found} were there; use it with{kind} data.root={output}")
    for line in packed.notes:
        print(f"note: {line}")
    if packed.faults:
        print(f"{len(packed.faults)} left out:", *packed.faults, sep="\n  ")
    if packed.strays:
        print(f"{len(packed.strays)} in the copy without an original; remove them:", *packed.strays, sep="\n  ")
    return 0 if packed.written or packed.found else USER_ERROR


# Options of what --images holds, with the kinds that they are of.
OF_KINDS = {"train_list": ("list", "tar"), "val_list": ("list", "tar"), "label_key": ("tar", "parquet")}


def _require_read(options: argparse.Namespace) -> None:
    """Raises UserError for an option that this packing would not read, or that it lacks."""
    for name, kinds in OF_KINDS.items():
        if getattr(options, name) is not None and options.kind not in kinds:
            raise UserError(
                f"--{name.replace('_', '-')} is of --from {' and '.join(kinds)}, and this is {options.kind}; leave it "
                "out"
            )
    if options.kind == "list" and options.train_list is None and options.val_list is None:
        raise UserError("--from list needs --train-list or --val-list, files of lines path,label")


def _pack(options: argparse.Namespace, output: Path, packing: data.Packing) -> data.Packed:
    source, progress = Path(options.images), sys.stderr.isatty()
    _require_read(options)
    label_key = options.label_key or data.BY_FOLDERS.label_key
    if options.to == "folder":
        if options.kind != "image_folder":
            raise UserError(f"--from {options.kind} is packed as archives: add --to tar")
        return data.pack_images(source, output, packing, options.workers, progress)
    if options.kind == "parquet":
        archives, notes = data.archives_of_parquet(source, packing, label_key), list[str]()
    else:
        lists = data.Labelling(options.train_list, options.val_list, label_key)
        opened = data.open_datasets(options.kind, source, labelling=lists)
        images = {
            split: one for split, one in zip(data.SPLITS, opened, strict=True) if isinstance(one, data.IndexedImages)
        }
        archives, notes = data.archives_of_images(images, packing), [line for one in opened for line in one.notes()]
    return data.pack_tars(source, archives, output, packing, options.workers, notes, progress)
