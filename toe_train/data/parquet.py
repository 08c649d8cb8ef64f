"""Data sets of the Hugging Face hub in parquet files, as the copy's archives: one for each file."""

from __future__ import annotations

import json
import os
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any

from toe_train.data.pack import Packing, packed_name
from toe_train.data.pack_tar import Archive, Made, smaller
from toe_train.data.sources.listing import SPLITS
from toe_train.data.sources.names import shorten
from toe_train.data.sources.tar import IN_A_NAME
from toe_train.errors import NoMemory, UserError

SUFFIX = ".parquet"
IMAGE = "image"  # the column, of a record of bytes and path
INSTALL = "pip install 'toe-train[parquet]'"


def archives_of_parquet(root: Path, packing: Packing, label_key: str = "label") -> list[Archive]:
    """Return the archives that hold a copy of a data set's train and val images.

    A class is called by its number and its name, 07_tench, so that its place among the sorted names is its number.

    root: holds the files, train-00000-of-00004.parquet and so on, perhaps in folders. label_key: the labels' column.

    Raises UserError where they are not there, are damaged or have other columns, or pyarrow is not installed.
    """
    _pyarrow()
    files = sorted(path for path in root.rglob(f"*{SUFFIX}") if not path.name.startswith("."))
    found = []
    for split in SPLITS:
        word = re.compile(rf"(?<![a-z]){IN_A_NAME[split]}(?![a-z])", re.IGNORECASE)
        chosen = [path for path in files if word.search(path.name) or word.fullmatch(path.parent.name)]
        if not chosen:
            has = shorten([path.name for path in files]) or "none"
            raise UserError(f"{root} has no parquet files with the word {split} in their names (it has {has}): rename")
        for path, stem in zip(chosen, _stems(chosen, root), strict=True):
            groups, rows = _looked_at(path, label_key)
            parts = [partial(_copies, packing, path, stem, group, label_key) for group in range(groups)]
            found.append(Archive(f"{split}/{stem}.tar", [*parts], rows, int(os.stat(path).st_mtime)))
    return found


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"--from parquet needs pyarrow, which is not installed: {INSTALL}") from None
    return pyarrow


def _looked_at(path: Path, label_key: str) -> tuple[int, int]:
    """Return the numbers of row groups and of rows."""
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            names, counts = file.schema_arrow.names, (file.num_row_groups, file.metadata.num_rows)
    except (OSError, arrow.ArrowInvalid) as fault:
        raise UserError(f"{path} cannot be read as parquet ({fault}): get it again") from None
    for name in (IMAGE, label_key):
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r} (it has {shorten(names)}): its images must be in {IMAGE!r}, and "
                "--label-key names that of the labels"
            )
    return counts


def _stems(files: list[Path], root: Path) -> list[str]:
    """Return names for what the files become: their own without the suffix, with their folders where two share one."""
    own = [path.name.removesuffix(SUFFIX) for path in files]
    if len(set(own)) == len(own):
        return own
    whole = ["_".join(path.relative_to(root).parts).removesuffix(SUFFIX) for path in files]
    if twice := [str(path) for path, stem in zip(files, whole, strict=True) if whole.count(stem) > 1]:
        raise UserError(f"{' and '.join(twice)} would become one archive: rename one")
    return whole


def _copies(packing: Packing, path: Path, stem: str, group: int, label_key: str) -> list[Made]:
    """Return the copies of a row group's images. stem: of the file, unlike that of all others."""
    changed, made = int(os.stat(path).st_mtime), []
    with _pyarrow().parquet.ParquetFile(path) as file:
        classes = _class_names(file.schema_arrow.metadata or {}, label_key)
        first = sum(file.metadata.row_group(before).num_rows for before in range(group))
        rows = file.read_row_group(group, columns=[IMAGE, label_key]).to_pylist()
    for number, row in enumerate(rows, first):
        where = f"{path}, row {number}"
        own, suffix = posixpath.splitext(posixpath.basename((row[IMAGE] or {}).get("path") or ""))
        name = packed_name(f"{number:07}_{own}{suffix}" if own else f"{number:07}.jpg")
        goal = f"{_class_of(row[label_key], classes)}/{stem}_{name}"
        try:
            content = (row[IMAGE] or {}).get("bytes")
            if row[label_key] is None or not content:
                raise UserError(f"{where} has no {'image' if not content else 'label'}; it is left out")
            made.append(Made(goal, changed, smaller(name, content, packing)))
        except (UserError, NoMemory) as fault:
            made.append(Made(goal, changed, None, f"{where}: {fault}"))
    return made


def _class_names(metadata: dict[bytes, bytes], label_key: str) -> list[str]:
    """Return the names that the hub's record in the file gives to the labels' numbers; none where it has none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return list(map(str, features[label_key]["names"]))
    except (KeyError, TypeError, ValueError):
        return []


def _class_of(label: int | str | None, classes: list[str]) -> str:
    if not isinstance(label, int):
        return str(label).replace("/", "_")
    if label >= len(classes):
        return f"{label:05}"
    return f"{label:0{len(str(len(classes) - 1))}}_{classes[label].replace('/', '_')}"
