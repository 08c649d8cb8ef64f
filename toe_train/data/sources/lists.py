"""Images that a list names, with their labels."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from toe_train.data.sources.folder import IndexedImages
from toe_train.data.sources.index import Row, build_index, in_folder_order
from toe_train.data.sources.label_lists import class_names, once, read_list
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.tar_forms import known_as


class ListImages(IndexedImages):
    """The images of a list, in the order, and with the digest, that they have in a folder of class folders.

    Paths count from root/<split> where the list's first image lies there, else from root.

    root: data.root. known: train's classes, where these are val's.

    Raises UserError where the list cannot be read; whether its images are there is the check's to see.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        label_list: str | Path,
        known: Sequence[str] | None = None,
        exif_orientation: ExifOrientation = "ignore",
    ) -> None:
        found = read_list(label_list, split)
        top = os.path.abspath(root.expanduser())
        first = Path(top) / split / found.entries[0].path
        folder = split if first.exists() else ""
        base, whole = root / folder, os.path.join(top, folder)
        entries, notes = once(found, [posixpath.normpath(posixpath.join(whole, entry.path)) for entry in found.entries])
        classes, names = class_names((entry.label for entry in entries.values()), known, str(label_list))
        rows: dict[str, list[Row]] = defaultdict(list)
        for entry in entries.values():
            name, path = names[entry.label], posixpath.normpath(entry.path)
            below = os.path.relpath(path, top) if posixpath.isabs(path) else path
            rows[name].append(Row(known_as(name, below.removeprefix(f"{split}/")), os.fsencode(path)))
        index = build_index(classes, (in_folder_order(rows[name]) for name in classes), found.stamps, notes)
        super().__init__(base, index, exif_orientation)
