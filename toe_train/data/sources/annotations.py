"""COCO's annotation files: read into arrays, and what is wrong with them.

What is odd and trains all the same, as COCO's own boxes without area, is counted and no fault.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from toe_train.errors import UserError

MOST_CLASSES = 10_000  # a category id beyond would make a classifier that nobody means
EDGE = 1.0  # pixels that a box may reach over the image's edge; COCO's own are rounded
PARTS = ("images", "annotations", "categories")
NEEDED = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
WHOLE = "a whole number that 64 bits hold"


@dataclass(frozen=True)
class Annotations:
    """An annotation file, as arrays; n images, m objects in the file's order.

    Attributes:
        names: of the image files.
        ids: (n,) int64, of the images.
        sizes: (n, 2) int64, width and height in pixels.
        categories: name by id, rising.
        image: (m,) int64, the place in `names` of each object's image.
        category: (m,) int64.
        boxes: (m, 4) float64, left, top, width, height in pixels.
        area: (m,) float64, by which COCO sorts objects into small, medium and large.
        crowd: (m,) bool.
    """

    names: list[str]
    ids: np.ndarray
    sizes: np.ndarray
    categories: dict[int, str]
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray


def read_annotations(path: Path) -> tuple[Annotations | None, list[str], list[str]]:
    """The content of a file, None where there are faults; the faults and what else a person should know, a line each.

    An object without `area` has its box's, and one without `iscrowd` is none.
    """
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        return None, [f"{path} is not there: name the annotation file in data.train_annotations, val_annotations"], []
    except OSError as fault:
        return None, [f"{path} cannot be read ({fault.strerror}): name another annotation file"], []


@lru_cache(maxsize=2)  # COCO's take many seconds, and a run's check and its opening both read them
def _read(path: Path, changed: int, size: int) -> tuple[Annotations | None, list[str], list[str]]:
    """See `read_annotations`; `changed` and `size` are the file's."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as fault:  # broken JSON, or no text
        return None, [f"{path} is no JSON ({fault}): it must be an annotation file as COCO has them"], []
    if faults := _faults_of_form(path, content):
        return None, faults, []
    faults = [*_faults_of_ids(path, content), *_faults_of_boxes(path, content)]
    if faults:
        return None, faults, []
    found = _as_arrays(content)
    return found, [], _notes(path, found)


def annotations_of(path: Path) -> Annotations:
    """The content of a file without faults.

    Raises:
        UserError: it has some; the first of them, and their number.
    """
    found, faults, _ = read_annotations(path)
    if found is None:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}")
    return found


def _faults_of_form(path: Path, content: Any) -> list[str]:
    """What is missing, or of another type, so that nothing else can be looked at."""
    if not isinstance(content, dict) or any(not isinstance(content.get(part), list) for part in PARTS):
        return [f"{path} must hold the lists {', '.join(PARTS)}, as COCO's annotation files do"]
    faults = []
    for part, keys in NEEDED.items():
        for place, entry in enumerate(content[part]):
            given = entry if isinstance(entry, dict) else {}
            wrong = [key for key, kind in keys.items() if not _is(given.get(key), kind)]
            named = f"{path}: {part}[{place}]"
            if wrong:
                faults.append(f"{named} has no {' and no '.join(wrong)} as COCO's have: mend or remove it")
            else:
                faults += (f"{named} has the {why}" for why in _wrong_values(part, given))
    for part in ("images", "categories"):
        if not content[part]:
            faults.append(f"{path}: it has no {part}; it must name at least one")
    return faults


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _wrong_values(part: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield what numbers of an entry are out of their range, and what else it need not have and is of no use."""
    for key, kind in NEEDED[part].items():
        if kind is int and not _is_whole(entry[key]):
            yield f"{key} {reprlib.repr(entry[key])}, and it must be {WHOLE}: mend it"
    for key, (is_right, rule) in OPTIONAL.items() if part == "annotations" else ():
        if key in entry and not is_right(entry[key]):
            yield f"{key} {reprlib.repr(entry[key])}, and it must be {rule}: mend it, or leave {key} out"


def _is_whole(value: Any) -> bool:
    return _is(value, int) and -(2**63) <= value < 2**63


def _finite(value: Any) -> float | None:
    """A number as float; None where it is none, or none that float64 has."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_area(value: Any) -> bool:
    number = _finite(value)
    return number is not None and number >= 0


def _is_crowd(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)  # false and true are too


OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {  # of annotations
    "id": (_is_whole, WHOLE),
    "area": (_is_area, "a number of pixels, 0 or more"),
    "iscrowd": (_is_crowd, "1 for a crowd and 0 for an object"),
}


def _faults_of_ids(path: Path, content: dict[str, Any]) -> list[str]:
    faults = []
    for part in PARTS:
        counts = Counter(entry["id"] for entry in content[part] if "id" in entry)
        for identity, count in counts.items():
            if count > 1:
                faults.append(f"{path}: {count} of {part} have the id {identity}: each must have its own")
    known = {part: {entry["id"] for entry in content[part]} for part in ("images", "categories")}
    for one in content["annotations"]:
        named = f"{path}: {_named(one)}"
        if one["image_id"] not in known["images"]:
            faults.append(f"{named} is of image {one['image_id']}, which is not in images: add the image, or remove it")
        if one["category_id"] not in known["categories"]:
            legal = _nearest(one["category_id"], known["categories"])
            faults.append(
                f"{named} is of category {one['category_id']}, which is not in categories; the nearest is {legal}"
            )
    for one in content["categories"]:
        if not 0 <= one["id"] < MOST_CLASSES:
            faults.append(
                f"{path}: category {one['name']} has the id {one['id']}, and ids are logits of the classifier: number "
                f"them from 0 or 1 on, below {MOST_CLASSES}"
            )
    return faults


def _faults_of_boxes(path: Path, content: dict[str, Any]) -> list[str]:
    sizes = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    faults = [
        f"{path}: image {one['id']} ({one['file_name']}) is {one['width']} x {one['height']}: give its size in pixels"
        for one in content["images"]
        if min(one["width"], one["height"]) < 1
    ]
    for one in content["annotations"]:
        if why := _wrong_box(one["bbox"], sizes.get(one["image_id"])):
            faults.append(f"{path}: {_named(one)} has the bbox {reprlib.repr(one['bbox'])}, {why}")
    return faults


def _wrong_box(box: Sequence[Any], size: tuple[int, int] | None) -> str | None:
    """What is wrong with a box, None where nothing is; COCO's without area, and those on the edge, are left alone."""
    numbers = [number for number in map(_finite, box) if number is not None]
    if len(box) != 4 or len(numbers) != 4:
        return "and a box is [left, top, width, height] in pixels"
    left, top, width, height = numbers
    if width < 0 or height < 0:
        return "and width and height must not be below 0: a box is [left, top, width, height], not its corners"
    if size is None:
        return None
    beyond = max(-left, -top, left + width - size[0], top + height - size[1])
    if beyond > EDGE:
        return f"which reaches {beyond:g} pixels out of its image of {size[0]} x {size[1]}: cut it to the image"
    return None


def _named(one: dict[str, Any]) -> str:
    return f"annotation {one['id']}" if "id" in one else f"an annotation of image {one['image_id']}"


def _nearest(value: int, known: Iterable[int]) -> int:
    return min(known, key=lambda other: (abs(other - value), other))


def _as_arrays(content: dict[str, Any]) -> Annotations:
    images, objects = content["images"], content["annotations"]
    place = {one["id"]: number for number, one in enumerate(images)}
    boxes = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4)
    given = [one.get("area") for one in objects]
    return Annotations(
        names=[one["file_name"] for one in images],
        ids=np.array([one["id"] for one in images], dtype=np.int64),
        sizes=np.array([(one["width"], one["height"]) for one in images], dtype=np.int64).reshape(-1, 2),
        categories={one["id"]: one["name"] for one in sorted(content["categories"], key=lambda one: int(one["id"]))},
        image=np.array([place[one["image_id"]] for one in objects], dtype=np.int64),
        category=np.array([one["category_id"] for one in objects], dtype=np.int64),
        boxes=boxes,
        area=np.array(
            [
                width * height if area is None else area
                for area, (_, _, width, height) in zip(given, boxes, strict=True)
            ],
            dtype=np.float64,
        ),
        crowd=np.array([bool(one.get("iscrowd", 0)) for one in objects], dtype=bool),
    )


def _notes(path: Path, found: Annotations) -> list[str]:
    thin = int((found.boxes[:, 2:] <= 0).any(1).sum())
    bare = len(found.names) - len(set(found.image[~found.crowd].tolist()))
    notes = []
    if thin:
        notes.append(f"{path}: {thin} boxes have no width or no height; training leaves them out")
    if crowds := int(found.crowd.sum()):
        notes.append(f"{path}: {crowds} crowds; they are left out of training, and what they hide counts for nothing")
    if bare:
        notes.append(f"{path}: {bare} images without objects; they are used too")
    return notes
