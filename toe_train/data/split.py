"""From one folder of photos in class folders to train and val: by class, by a seed, and equal images on one side.

An image goes where its pixels and the seed send it, whatever its name is, so that the same photos are always split
alike, and photos that are added later move few of the others.
"""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from toe_train.data.order.randomness import derive_seed
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.label_lists import class_names, typed
from toe_train.data.sources.listing import SPLITS, ClassFolders, is_image
from toe_train.data.sources.names import NAMES_SHOWN, legible, shorten
from toe_train.data.sources.opening import only_class
from toe_train.data.spread import spread
from toe_train.data.whole import require_new, whole_folder
from toe_train.errors import NoMemory, UserError, is_text

RECORD = "split.json"
SPLIT_LIST = "images.csv"

Form = Literal["links", "copies", "list"]


@dataclass(frozen=True)
class Splitting:
    """How photos are split: the share of each class that is for validation, a seed, and what is written.

    form: "links" are hard links, which take no room; "copies"; or "list", a CSV file of path, label and split.
    """

    val: float
    seed: int = 0
    form: Form = "links"


@dataclass(frozen=True)
class Split:
    """What `split_images` did.

    Attributes:
        counts: images of each class in train and in val.
        is_new: whether it was made now; the same was there already.
        faults: a message for each file that is no image, or cannot be read, and is left out.
        notes: a line on each thing that a person should know.
    """

    counts: dict[str, tuple[int, int]]
    is_new: bool
    faults: list[str]
    notes: list[str]


class _Photo(NamedTuple):
    """A file below the source, its class, and what its pixels are."""

    path: str
    name: str
    digest: str


def split_images(source: Path, output: Path, splitting: Splitting, progress: bool = False) -> Split:
    """Split the images of a folder of class folders into `output`/train and `output`/val.

    Every file is decoded. Which files are images is the rule of every other command, see `ClassFolders`.

    Args:
        source: holds a folder for each class.
        output: a new folder outside `source`, whole in the end or not there; one that the same call made stays.
        splitting: how.
        progress: show a bar.

    Raises:
        UserError: no such folder, fewer than two classes, a class that cannot be on both sides, or an output that is
            something else.
        OSError: the disk does not take it.
    """
    _check(source, output, splitting)
    listing = ClassFolders(source)
    paths = [(path, name) for name in listing.classes for path in listing.images(name)]
    notes = listing.notes()
    if not paths:
        raise UserError(_no_classes(source, listing))
    if fault := only_class(source, listing.classes):
        raise UserError(fault)
    if splitting.form == "list":
        _require_readable(source, [path for path, _ in paths], sorted({name for _, name in paths}))
    seen = list(spread(_look, [source / path for path, _ in paths], True, progress))
    faults = [fault for _, fault in seen if fault is not None]
    photos = [_Photo(path, name, digest) for (path, name), (digest, _) in zip(paths, seen, strict=True) if digest]
    notes += _left_out(source, listing.classes, photos) + _equal_ones(source, photos)
    groups: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        groups[photo.digest].append(photo.name)
    if len({photo.name for photo in photos}) < 2:
        raise UserError(f"{source} holds images of fewer than two classes that can be read: {'; '.join(notes)}")
    val = choose_val(groups, splitting.val, splitting.seed)
    plan = [(SPLITS[photo.digest in val], photo) for photo in photos]
    is_new = not _is_there(source, output, splitting, plan)
    if is_new:
        _write(source, output, splitting, plan)
    counts = Counter((photo.name, side) for side, photo in plan)
    names = sorted({photo.name for photo in photos})
    return Split({name: (counts[name, "train"], counts[name, "val"]) for name in names}, is_new, faults, notes)


def _require_readable(source: Path, paths: list[str], classes: list[str]) -> None:
    """Refuse names that a run would not take from a list as they are: it is text, in which digits are a number."""
    try:
        if odd := [name for name in classes if name != name.strip()] + [path for path in paths if not is_text(path)]:
            raise UserError(f"{source}: a list cannot hold {legible(odd[0])}, with spaces at an end or no text")
        class_names(map(typed, classes), None, f"{source}, class folders in a list")
    except UserError as fault:
        raise UserError(f"{fault}; rename it, or give --form links or copies") from None


def choose_val(groups: Mapping[str, Sequence[str]], share: float, seed: int) -> set[str]:
    """Return the digests of the images that are for validation.

    Of each of n images of a class `share` is wanted, rounded, but one at least and n - 1 at most. Equal images, which
    may be of several classes, stay together: they are taken where no class gets more than it wants by that.

    groups: the class of each image, by its digest.

    Raises UserError for classes that cannot have images on both sides.
    """
    order = sorted(groups, key=lambda digest: derive_seed(seed, f"split {digest}"))
    totals = Counter(name for names in groups.values() for name in names)
    wanted = {name: min(max(1, int(share * count + 0.5)), count - 1) for name, count in totals.items()}
    taken: Counter[str] = Counter()
    val = set()

    def take(digest: str, most: Mapping[str, int]) -> None:
        own = Counter(groups[digest])
        if all(taken[name] + count <= most[name] for name, count in own.items()):
            taken.update(own)
            val.add(digest)

    for digest in order:
        take(digest, wanted)
    almost_all = {name: count - 1 for name, count in totals.items()}
    for digest in sorted(order, key=lambda digest: len(groups[digest])):  # classes whose groups are all too large
        if any(not taken[name] for name in groups[digest]):
            take(digest, almost_all)
    if alone := sorted(name for name in totals if not taken[name]):
        raise UserError(
            f"train and val need different images of each class, and there are too few of {shorten(alone)}: add "
            "images, or move its folder away"
        )
    return val


def _check(source: Path, output: Path, splitting: Splitting) -> None:
    if not 0 < splitting.val < 1:
        raise UserError(f"--val {splitting.val} must be a share of the images above 0 and below 1, such as 0.2")
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the one that holds a folder of images for each class")
    if output.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"--output {output} and {source} must lie apart; name another folder")
    if all((source / split).is_dir() for split in SPLITS):
        raise UserError(f"{source} holds train/ and val/ already: train on it with data.root={source}")


def _no_classes(source: Path, listing: ClassFolders) -> str:
    loose = next(filter(is_image, listing.loose), None)
    if loose is not None:
        return (
            f"{source} is flat: images such as {legible(loose)} lie directly in it; move each into the folder of its "
            f"class, {source / '<class>' / loose}"
        )
    return f"{source} holds no images in class folders{listing.aside()}: put them into {source / '<class>'}/"


def _look(path: Path) -> tuple[str, str | None]:
    """Return a digest of an image's pixels; empty, with the fault, where it cannot be read."""
    try:
        image = load_rgb(path)
    except (UserError, NoMemory) as fault:
        return "", str(fault)
    summed = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    summed.update(image.tobytes())
    return summed.hexdigest(), None


def _left_out(source: Path, classes: list[str], photos: list[_Photo]) -> list[str]:
    empty = [name for name in classes if name not in {photo.name for photo in photos}]
    return [f"{source}: left out {shorten(empty)}: no image there that can be read"] if empty else []


def _equal_ones(source: Path, photos: list[_Photo]) -> list[str]:
    """Return notes on images with the same pixels, and on those among them that are of several classes."""
    groups: dict[str, list[_Photo]] = defaultdict(list)
    for photo in photos:
        groups[photo.digest].append(photo)
    equal = [group for group in groups.values() if len(group) > 1]
    torn = [group for group in equal if len({photo.name for photo in group}) > 1]
    found = []
    if equal:
        found.append(f"{source}: images with the same pixels stay on one side: {_shown(equal)}")
    if torn:
        found.append(f"{source}: images with the same pixels are of several classes; keep each in one: {_shown(torn)}")
    return found


def _shown(groups: list[list[_Photo]]) -> str:
    shown = "; ".join(" = ".join(legible(photo.path) for photo in group) for group in groups[:NAMES_SHOWN])
    return shown if len(groups) <= NAMES_SHOWN else f"{shown}; ... ({len(groups)} in all)"


Plan = list[tuple[str, _Photo]]


def _record(source: Path, splitting: Splitting, plan: Plan) -> dict[str, object]:
    """What a split is made of."""
    summed = hashlib.sha256()
    for side, photo in plan:
        summed.update(os.fsencode(f"{side}/{photo.path}") + b"\0" + photo.digest.encode())
    return {"source": str(source.resolve()), **asdict(splitting), "images": summed.hexdigest()}


def _is_there(source: Path, output: Path, splitting: Splitting, plan: Plan) -> bool:
    """Whether the output is this split already; raises UserError where it is another."""
    try:
        noted = json.loads((output / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        require_new(output)
        return False
    now = _record(source, splitting, plan)
    for name, value in now.items():
        if not isinstance(noted, dict) or noted.get(name) != value:
            told = "of other images: they have changed since" if name == "images" else f"with another {name}"
            raise UserError(f"--output {output} is a split {told}; remove it, or name a new folder")
    goals = [output / side / photo.path for side, photo in plan] if splitting.form != "list" else [output / SPLIT_LIST]
    if gone := [str(goal) for goal in goals if not goal.exists()]:
        raise UserError(
            f"--output {output}: {len(gone)} of its files are gone, {gone[0]} for one; remove it, or name a new folder"
        )
    return True


def _write(source: Path, output: Path, splitting: Splitting, plan: Plan) -> None:
    with whole_folder(output) as place:
        if splitting.form == "list":
            _write_list(source, place / SPLIT_LIST, plan)
        else:
            for side, photo in plan:
                goal = place / side / photo.path
                goal.parent.mkdir(parents=True, exist_ok=True)
                _put(source / photo.path, goal, splitting.form)
        text = json.dumps(_record(source, splitting, plan), indent=2) + "\n"
        (place / RECORD).write_text(text, encoding="utf-8")


def _put(origin: Path, goal: Path, form: Form) -> None:
    if form == "copies":
        shutil.copy2(origin, goal)
        return
    try:
        os.link(os.path.realpath(origin), goal)
    except OSError as error:
        raise UserError(
            f"{origin} cannot be linked into the output ({error.strerror}): name an --output on the same disk, or give "
            "--form copies"
        ) from None


def _write_list(source: Path, goal: Path, plan: Plan) -> None:
    """Write paths from the root, labels and splits; a name's bytes are written as they are."""
    root = source.resolve()
    with goal.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["path", "label", "split"])
        rows.writerows((str(root / photo.path), photo.name, side) for side, photo in plan)
