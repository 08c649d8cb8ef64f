"""From what archives hold to labelled images: the forms in which image collections are packed as tars.

- class/image, as a folder of class folders is packed, in one archive or several;
- an archive for each class, in a folder or in one more archive: ImageNet's training images;
- images without folders, with a list of their labels: ImageNet's validation images;
- shards of WebDataset: beside each image a file of its name up to the first ".", with the suffix .cls or .json.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train.data.sources.index import Row
from toe_train.data.sources.label_lists import Label, LabelList, class_names, label_in_text, label_of, missing, once
from toe_train.data.sources.listing import is_left_behind
from toe_train.data.sources.names import legible, shorten
from toe_train.data.sources.passed_over import PassedOver, Reason
from toe_train.data.sources.span import Span
from toe_train.data.sources.tar_contents import Contents, Place
from toe_train.errors import UserError


class Labelled(NamedTuple):
    """Images by class. rows: those of each class by what they are known as. notes: lines for a person."""

    classes: list[str]
    rows: dict[str, dict[str, Row]]
    passed: PassedOver
    notes: list[str]


def labelled(
    units: list[Contents], paths: Sequence[str], labels: LabelList | None, known: Sequence[str] | None, label_key: str
) -> Labelled:
    """Return the images of archives by class, by the form that their contents have.

    paths: of the archives, by number. labels: a list of them, for images that lie in no class folders. known: train's
    classes, where these are val. label_key: of a shard's .json files.

    Raises UserError where the contents have none of the forms.
    """
    passed = PassedOver()
    if labels is None and (shards := _shard_labels(units, paths, label_key)) is not None:
        found, notes = shards
        return _with_labels(found, known, passed)._replace(notes=notes)
    images = [unit.images(passed) for unit in units]
    if labels is not None:
        return _listed(units, images, labels, known, passed)
    in_folders = any(b"/" in name for of_unit in images for name in of_unit)
    if not in_folders and len(units) == 1 and not units[0].under and images[0]:
        some = shorten([os.fsdecode(name) for name in images[0]])
        raise UserError(
            f"{units[0].name} holds images that lie in no class folders ({some}): name a list of their labels with "
            "data.train_list or data.val_list, lines of path,label; or pack class/image"
        )
    return _by_folder(units, images, passed, one_class_each=not in_folders)


def known_as(name: str, path: str) -> str:
    """Return the path that an image of the class `name` has in a folder of class folders."""
    return path if path.startswith(f"{name}/") else f"{name}/{path}"


def _by_folder(
    units: list[Contents], images: list[dict[bytes, Place]], passed: PassedOver, one_class_each: bool
) -> Labelled:
    rows: dict[str, dict[str, Row]] = defaultdict(dict)
    again = 0
    for unit, of_unit in zip(units, images, strict=True):
        for name in [unit.stem] if one_class_each else unit.top_folders():
            rows[name]  # a class without images is to be told
        for inside, place in of_unit.items():
            text = os.fsdecode(inside)
            name, slash, _ = text.partition("/")
            if one_class_each:
                name, text = unit.stem, f"{unit.stem}/{text}"
            elif not slash:
                passed.add(Reason.OUTSIDE, text)
                continue
            again += text in rows[name]
            rows[name][text] = Row(text, unit.under + inside, place)
    notes = [f"{again} images are in several archives under one name, and the last one counts"] if again else []
    return Labelled(sorted(rows), rows, passed, notes)


def _listed(
    units: list[Contents],
    images: list[dict[bytes, Place]],
    labels: LabelList,
    known: Sequence[str] | None,
    passed: PassedOver,
) -> Labelled:
    whole: dict[str, Row] = {}
    for unit, of_unit in zip(units, images, strict=True):
        for inside, place in of_unit.items():
            text = os.fsdecode(inside)
            whole[text] = Row(text, unit.under + inside, place)
    names = shorten([unit.name for unit in units])
    find = _Finder(whole)
    paths = [find(entry.path) for entry in labels.entries]
    if absent := [entry for entry, path in zip(labels.entries, paths, strict=True) if path is None]:
        raise missing(absent, names)
    entries, notes = once(labels, [path for path in paths if path is not None])
    done = _with_labels([(entry.label, whole[path]) for path, entry in entries.items()], known, passed)
    left = len(whole) - len(entries)
    notes += [f"{names}: passed over {left} images that the list does not name"] if left else []
    return done._replace(notes=notes)


class _Finder:
    """Which of an archive's paths a path of a list is: the same; or else that one of the two is the end of the other.

    An archive may be packed below some folder, and a list begin above it. Where all images lie in one folder, whatever
    it is called, the file's name is enough.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = dict.fromkeys(paths)
        self._of_ends: dict[int, dict[str, str | None]] = {}  # paths by their last so many parts; None for several
        self._is_flat = len({posixpath.dirname(path) for path in self._paths}) == 1

    def __call__(self, path: str) -> str | None:
        """Return the archive's path, None where there is none or several are alike."""
        parts = posixpath.normpath(path).strip("/").split("/")
        for first in range(len(parts)):
            if (end := "/".join(parts[first:])) in self._paths:
                return end
        return self._by_end(parts) or (self._by_end(parts[-1:]) if self._is_flat else None)

    def _by_end(self, parts: list[str]) -> str | None:
        count = len(parts)
        if count not in self._of_ends:
            ends = self._of_ends[count] = {}
            for path in self._paths:
                end = "/".join(path.split("/")[-count:])
                ends[end] = None if end in ends else path
        return self._of_ends[count].get("/".join(parts))


def _with_labels(found: list[tuple[Label, Row]], known: Sequence[str] | None, passed: PassedOver) -> Labelled:
    classes, names = class_names((label for label, _ in found), known, "the labels of the archives' images")
    rows: dict[str, dict[str, Row]] = {name: {} for name in classes}
    for label, row in found:
        name = names[label]
        path = as_known = known_as(name, row.known_as)
        copies = 1
        while as_known in rows[name]:  # shards may number their samples each from 0
            copies += 1
            as_known = f"{path}#{copies}"
        rows[name][as_known] = row._replace(known_as=as_known)
    return Labelled(classes, rows, passed, [])


def _shard_labels(
    units: list[Contents], paths: Sequence[str], label_key: str
) -> tuple[list[tuple[Label, Row]], list[str]] | None:
    """Return the images of shards with their labels, and lines for a person; None where these are no shards."""
    if not any(name.lower().endswith((b".cls", b".json")) for unit in units for name in unit.files):
        return None
    samples = [_samples(unit) for unit in units]
    with_images = [sample for of_unit in samples for sample in of_unit.values() if sample.images]
    if not any("cls" in sample.others for sample in with_images):
        beside = [sample for sample in with_images if "json" in sample.others]
        flat = not any(b"/" in name for sample in with_images for name in sample.images)
        if not beside or not (flat or _holds(beside[0], paths, label_key)):
            return None
    found, notes = [], []
    for unit, of_unit in zip(units, samples, strict=True):
        if bare := [key for key, sample in of_unit.items() if not sample.images and "cls" in sample.others]:
            what = f"{len(bare)} samples with a label and no image that can be read"
            notes.append(f"{unit.name}: passed over {what}: {shorten(bare)}")
        for key, sample in of_unit.items():
            if not sample.images:
                continue
            if len(sample.images) > 1:
                names = shorten(list(map(os.fsdecode, sample.images)))
                raise UserError(f"{unit.name}: the sample {legible(key)} has several images ({names}); give it one")
            ((inside, place),) = sample.images.items()
            label = _label_of(sample, paths, f"{unit.name}/{key}", label_key)
            found.append((label, Row(os.fsdecode(inside), unit.under + inside, place)))
    return found, notes


class _Sample(NamedTuple):
    """The files of a key: images, and others by suffix."""

    images: dict[bytes, Place]
    others: dict[str, Place]


def _samples(unit: Contents) -> dict[str, _Sample]:
    found: dict[str, _Sample] = {}
    for inside, place in unit.files.items():
        folder, slash, name = os.fsdecode(inside).rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not dot or any(map(is_left_behind, (*folder.split("/"), name)) if folder else [is_left_behind(name)]):
            continue
        sample = found.setdefault(folder + slash + stem, _Sample({}, {}))
        if f".{suffix.lower()}" in IMG_EXTENSIONS:
            sample.images[inside] = place
        else:
            sample.others[suffix.lower()] = place
    return found


def _label_of(sample: _Sample, paths: Sequence[str], where: str, label_key: str) -> Label:
    if "cls" in sample.others:
        return label_in_text(_read(sample.others["cls"], paths, f"{where}.cls"), f"{where}.cls")
    if "json" not in sample.others:
        raise UserError(f"{where}: there is no label, {where}.cls or {where}.json, beside the image; add it")
    record = _record(sample, paths, f"{where}.json")
    if not isinstance(record, dict) or label_key not in record:
        keys = shorten(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{where}.json has no key {label_key!r} (it has {keys}): set data.label_key to that of the label"
        )
    return label_of(record[label_key], f"{where}.json, {label_key}")


def _holds(sample: _Sample, paths: Sequence[str], label_key: str) -> bool:
    record = _record(sample, paths, "the first .json")
    return isinstance(record, dict) and label_key in record


def _record(sample: _Sample, paths: Sequence[str], where: str) -> Any:
    try:
        return json.loads(_read(sample.others["json"], paths, where))
    except ValueError as fault:
        if isinstance(fault, UserError):
            raise
        raise UserError(f"{where} is no JSON ({fault}): it must hold the image's label") from None


def _read(place: Place, paths: Sequence[str], where: str) -> bytes:
    return Span(paths[place.archive], place.offset, place.length, where).read()
