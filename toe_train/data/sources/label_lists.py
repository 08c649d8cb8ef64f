"""Lists of images and their labels in text files, and the labels that come with ImageNet's validation images."""

from __future__ import annotations

import csv
import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toe_train.data.sources.index import Stamp
from toe_train.data.sources.names import legible, shorten
from toe_train.errors import UserError

Label = int | str
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
LINES = (".jsonl", ".ndjson", ".json")
DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


class Entry(NamedTuple):
    """An image of a list: its path as it is written there, its label, and where it stands, for a person."""

    path: str
    label: Label
    where: str


class LabelList(NamedTuple):
    """The images of train or val in a list. stamps: of what it was read from. notes: lines for a person."""

    entries: list[Entry]
    stamps: list[Stamp]
    notes: list[str]


def read_list(path: str | Path, split: str) -> LabelList:
    """Read the images of train or val from a list.

    By its suffix it is JSON lines (.jsonl, .ndjson, .json: objects with `path`, `label` and perhaps `split`), CSV
    (.csv: path, label and perhaps split, in this order or as a first line names them), or words (any other: a path, and
    behind the last space or tab its label). A list without splits is all of the one that is asked for.

    Raises UserError naming the file and line of a fault.
    """
    file = Path(path).expanduser()
    try:
        stamp = Stamp.of(str(file))
        text = file.read_text(encoding="utf-8-sig")
    except OSError as fault:
        raise UserError(f"the list {file} cannot be read ({fault.strerror}): name a file of lines path,label") from None
    except UnicodeDecodeError as fault:
        raise UserError(f"the list {file} is no text in UTF-8 (byte {fault.start}): convert it") from None
    if file.suffix.lower() in LINES:
        rows = _json_rows(file, text)
    else:
        rows = _csv_rows(file, text) if file.suffix.lower() == ".csv" else _word_rows(file, text)
    entries, others = [], dict[str, int]()
    for entry, of in rows:
        if of is None or SPLIT_NAMES.get(of.lower()) == split:
            entries.append(entry)
        elif of.lower() not in SPLIT_NAMES:
            others[of] = others.get(of, 0) + 1
    notes = [f"{file}: passed over {count} rows of the split {legible(name)}" for name, count in others.items()]
    if not entries:
        raise UserError(f"the list {file} holds no images for {split}: give lines path,label or path,label,{split}")
    return LabelList(entries, [stamp], notes)


def _json_rows(file: Path, text: str) -> Iterator[tuple[Entry, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise UserError(f"{where}: it is no JSON ({fault}); each line is an object with path and label") from None
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
            raise UserError(f"{where}: there is no path; each line is an object with path and label")
        of = row.get("split")
        if of is not None and not isinstance(of, str):
            raise UserError(f"{where}: split is {of!r}, and must be train or val")
        yield Entry(row["path"], label_of(row.get("label"), where), where), of


def _csv_rows(file: Path, text: str) -> Iterator[tuple[Entry, str | None]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns, rows, bare = ["path", "label", "split"], 0, ""
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if not any(row):
                continue
            if {"path", "label"} <= set(row):
                columns = row
                continue
            named = dict(zip(columns, row, strict=False))
            if not named.get("path") or not named.get("label") or len(row) > len(columns):
                raise UserError(f"{where}: {','.join(row)[:80]!r} must be path,label or path,label,split")
            has_suffix = any(posixpath.splitext(cell)[1] for cell in row)
            if rows == 1 and bare and has_suffix:  # the names of columns, other than those that are known
                raise UserError(f"{bare} names no image; call the columns path, label and perhaps split")
            rows, bare = rows + 1, "" if has_suffix else where
            yield Entry(named["path"], label_of(typed(named["label"]), where), where), named.get("split") or None
    except csv.Error as fault:
        raise UserError(f"{file}, line {reader.line_num}: it is no CSV ({fault})") from None


def _word_rows(file: Path, text: str) -> Iterator[tuple[Entry, str | None]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where, parts = f"{file}, line {number}", line.strip().rsplit(None, 1)
            if len(parts) < 2:
                raise UserError(f"{where}: {line[:80]!r} must be a path, a space and a label")
            yield Entry(parts[0], label_of(typed(parts[1]), where), where), None


def typed(text: str) -> Label:
    """Return the label that a text is: a number where it is one as it is written, else a name."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def label_of(value: Any, where: str) -> Label:
    """Return a label that was read: a class's number, from 0 up, or its name. Raises UserError for all else."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (is_number or (isinstance(value, str) and value)):
        raise UserError(f"{where}: the label is {value!r}, and must be a class's name or its number, from 0 up")
    return value


def label_in_text(content: bytes, where: str) -> Label:
    """Return the label that a shard holds as text."""
    try:
        return label_of(typed(content.decode()), where)
    except UnicodeDecodeError:
        raise UserError(f"{where}: the label is no text") from None


def class_names(labels: Iterable[Label], known: Sequence[str] | None, what: str) -> tuple[list[str], dict[Label, str]]:
    """Return the names of classes in the order of their labels, and the name of each label that was read.

    Names are sorted, as folders are. Numbers are in their own order, and are names themselves; or where train's
    classes have other names (`known`), number i is the i-th of these.

    Raises UserError for a number beyond them, and for numbers and names in one list.
    """
    found = set(labels)
    numbers = sorted(label for label in found if isinstance(label, int))
    names = sorted(label for label in found if isinstance(label, str))
    if numbers and names:
        raise UserError(
            f"{what}: labels are numbers and names ({numbers[0]} and {legible(names[0])}): give all as one or the other"
        )
    if names:
        return names, {name: name for name in names}
    if known is None or set(map(str, numbers)) <= set(known):
        classes = list(map(str, numbers)) if known is None else list(known)
        return classes, {number: str(number) for number in numbers}
    if numbers[-1] >= len(known):
        raise UserError(
            f"{what}: label {numbers[-1]} is beyond train's {len(known)} classes, which are numbered from 0 in the "
            "order of their names: give names, or numbers below it"
        )
    return list(known), {number: known[number] for number in numbers}


def devkit_list(root: Path) -> LabelList | None:
    """Return the labels of ImageNet's validation images by its development kit; None where `root` does not hold it.

    It is the folder ILSVRC2012_devkit_t12 or the archive of that name: line i of the ground truth is the number of
    image i's synset, whose name meta.mat gives.

    Raises UserError where the kit is not whole.
    """
    folder, packed = root / DEVKIT, root / f"{DEVKIT}.tar.gz"
    if not folder.is_dir() and not packed.is_file():
        return None
    used = folder if folder.is_dir() else packed
    try:
        if folder.is_dir():
            files = [folder / GROUND_TRUTH, folder / META]
            stamps = [Stamp.of(str(file)) for file in files]
            truth, meta = (file.read_bytes() for file in files)
        else:
            stamps = [Stamp.of(str(packed))]
            with tarfile.open(packed, "r:gz") as kit:
                truth, meta = (_member(kit, f"{DEVKIT}/{name}") for name in (GROUND_TRUTH, META))
        names = _synsets(meta)
        entries = [
            Entry(f"ILSVRC2012_val_{number:08d}.JPEG", names[int(line)], f"{used}, image {number}")
            for number, line in enumerate(truth.split(), 1)
        ]
    except (OSError, EOFError, KeyError, ValueError, TypeError, IndexError, tarfile.TarError) as fault:
        reason = str(fault).strip() or type(fault).__name__
        raise UserError(
            f"{used} does not hold ImageNet's labels of the validation images ({reason}): get {DEVKIT}.tar.gz again, "
            "or set data.val_list to a list of them"
        ) from None
    return LabelList(entries, stamps, [])


def _member(kit: tarfile.TarFile, name: str) -> bytes:
    file = kit.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()


def _synsets(meta: bytes) -> dict[int, str]:
    """Return the names of the synsets by their numbers: the first two fields of each row of meta.mat."""
    from scipy.io import loadmat  # takes a moment to import, and only this file needs it

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}


def once(labels: LabelList, images: Sequence[str]) -> tuple[dict[str, Entry], list[str]]:
    """Return the first entry of each image, and the list's lines for a person.

    images: what each entry's path leads to. Raises UserError where an image has two labels.
    """
    found: dict[str, Entry] = {}
    for entry, image in zip(labels.entries, images, strict=True):
        before = found.setdefault(image, entry)
        if before.label != entry.label:
            raise UserError(
                f"{entry.where}: {legible(entry.path)} has the label {entry.label}, and {before.label} in "
                f"{before.where}: give an image one"
            )
    again = len(labels.entries) - len(found)
    file = labels.stamps[0].path
    notes = [f"{file}: {again} entries are of images that others are of, which count once"] if again else []
    return found, labels.notes + notes


def missing(entries: list[Entry], what: str) -> UserError:
    """Return what is told of entries whose images are not there."""
    return UserError(
        f"{entries[0].where}: {len(entries)} images of the list are not in {what}: "
        f"{shorten([entry.path for entry in entries])}; correct the list, whose paths must end as theirs do"
    )
