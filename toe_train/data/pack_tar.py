"""A smaller copy of images as archives, train/00000.tar and so on, that data.kind=tar reads; from any kind of images.

An archive has its name only once it is whole, read back and on the disk, so that a copy that was broken off is
continued. Its members have the times of their originals: where one was changed since, its archive is made anew.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from toe_train.data.pack import (
    JPEG_NAMES,
    LONGEST_SIDE,
    Packed,
    Packing,
    is_small_jpeg,
    leave_interrupts_to_the_main_process,
    packed_name,
    prepare,
    reduced,
    require_apart,
    require_in_range,
    settle,
)
from toe_train.data.sources.folder import IndexedImages
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.listing import SPLITS, is_left_behind
from toe_train.data.sources.orientation import UPRIGHT, as_exif, orientation_of
from toe_train.data.sources.span import Span
from toe_train.data.sources.tar_members import Kind, TarFile
from toe_train.errors import NoMemory, RunFailed, UserError, of_system

OF_AN_ARCHIVE = 20_000  # images
AT_ONCE = 64  # images that a process makes before it hands them over


class Made(NamedTuple):
    """An image of the copy: its name and time in seconds, and its bytes, or why it is left out."""

    name: str
    changed: int
    content: bytes | None
    fault: str | None = None


class Archive(NamedTuple):
    """An archive of the copy: its path below the output, what makes its images in parts, and how many they are.

    changed: times of the originals in seconds, by the copies' names; or one for all.
    """

    path: str
    parts: list[Callable[[], list[Made]]]
    images: int
    changed: dict[str, int] | int


def pack_tars(
    source: Path,
    archives: list[Archive],
    output: Path,
    packing: Packing,
    workers: int,
    notes: list[str],
    progress: bool = False,
) -> Packed:
    """Write a smaller copy of images as archives; each image as `pack_images` makes it.

    Args:
        source: what it is a copy of; noted beside it.
        archives: of the copy, see `archives_of_images`.
        output: outside `source`; continued if it is there.
        packing: how.
        workers: processes.
        notes: lines on what was passed over.
        progress: show a bar.

    Raises:
        UserError: an output inside the source or packed otherwise or from another source, or a value out of range.
        RunFailed: the disk does not take a file, or a process is killed.
    """
    require_in_range(packing, workers)
    require_apart(source, output)
    written, found, faults = 0, 0, list[str]()
    try:
        prepare(source, output, packing, to="tar")
        with (
            ProcessPoolExecutor(workers, initializer=leave_interrupts_to_the_main_process) as pool,
            tqdm(total=sum(one.images for one in archives), desc="packing", unit="image", disable=not progress) as bar,
        ):
            for archive in archives:
                if _is_whole(output / archive.path, archive, pool):
                    found += archive.images
                else:
                    wrong = _write(output / archive.path, archive, pool)
                    faults += wrong
                    written += archive.images - len(wrong)
                bar.update(archive.images)
        expected = {output / archive.path for archive in archives}
        strays = [str(path) for path in sorted(output.rglob("*.tar")) if path not in expected]
    except OSError as error:
        raise of_system(error) from None
    except BrokenProcessPool:
        raise RunFailed("a process was killed, perhaps for want of memory; use fewer --workers to continue") from None
    return Packed(written, found, faults, strays, notes)


def archives_of_images(images: dict[str, IndexedImages], packing: Packing) -> list[Archive]:
    """Return the archives that hold a copy of train and val images.

    Raises UserError where two images would have one name, or a class would be read back as another.
    """
    found = []
    for split in SPLITS:
        source, names = images[split], set[str]()
        for name in source.classes:
            if "/" in name or is_left_behind(name):
                wrong = "'/' would part it" if "/" in name else "folders of this name are passed over"
                rule = f"an archive's classes are its folders' names, and {wrong}; rename the label"
                raise UserError(f"--images: class {name!r} cannot be written: {rule}")
        items = []
        for index in range(len(source)):
            place, name = source.place(index), source.classes[source.label(index)]
            goal = packed_name(_below_class(name, place.name if isinstance(place, Span) else place))
            if goal in names:
                raise UserError(f"--images: {source.describe(index)} and another would both be {split}/{goal}; rename")
            names.add(goal)
            items.append((goal, place))
        for number, begin in enumerate(range(0, len(items), OF_AN_ARCHIVE)):
            inside = items[begin : begin + OF_AN_ARCHIVE]
            parts = [inside[first : first + AT_ONCE] for first in range(0, len(inside), AT_ONCE)]
            times = {goal: _changed(place) for goal, place in inside}
            makers: list[Callable[[], list[Made]]] = [partial(_copies, packing, part) for part in parts]
            found.append(Archive(f"{split}/{number:05}.tar", makers, len(inside), times))
    return found


def smaller(name: str, content: bytes, packing: Packing) -> bytes:
    """Return an image's copy: a JPEG; as it is where it is one, small enough, and called so.

    Raises UserError or NoMemory where it cannot be read.
    """
    place = Span("", 0, len(content), name, content)
    image = reduced(load_rgb(place), packing.short_side)
    if max(image.size) > LONGEST_SIDE:
        width, height = image.size
        raise UserError(f"{name}: {width}x{height} is more than a JPEG holds ({LONGEST_SIDE} a side); cut it")
    if name.lower().endswith(JPEG_NAMES) and is_small_jpeg(io.BytesIO(content), packing.short_side):
        return content
    turn = orientation_of(place)
    exif = {} if turn == UPRIGHT else {"exif": as_exif(turn)}  # so that the copy is turned as its original is
    file = io.BytesIO()
    image.save(file, "JPEG", quality=packing.quality, **exif)
    return file.getvalue()


def _below_class(name: str, path: str) -> str:
    """Return class/image of an image's path, with the folders between."""
    _, between, rest = f"/{path}".partition(f"/{name}/")
    return f"{name}/{rest if between else posixpath.basename(path)}"


def _changed(place: str | Span) -> int:
    try:
        return int(os.stat(place.archive if isinstance(place, Span) else place).st_mtime)
    except OSError:  # it is told when it is read
        return 0


def _copies(packing: Packing, items: list[tuple[str, str | Span]]) -> list[Made]:
    made = []
    for goal, place in items:
        changed = _changed(place)  # before it is read: what is written meanwhile is packed next time
        try:
            content = place.read() if isinstance(place, Span) else Path(place).read_bytes()
            made.append(Made(goal, changed, smaller(str(place), content, packing)))
        except OSError as fault:
            made.append(Made(goal, changed, None, f"{place} cannot be read ({fault.strerror}): replace or remove it"))
        except (UserError, NoMemory) as fault:
            made.append(Made(goal, changed, None, str(fault)))
    return made


def _write(goal: Path, archive: Archive, pool: ProcessPoolExecutor) -> list[str]:
    """Write an archive, read it back, and give it its name; return what is wrong with the images that it leaves out."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    faults, lengths = list[str](), dict[str, int]()
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as file:
        for made in _all(pool.map(_called, archive.parts)):
            if made.content is None:
                faults.append(str(made.fault))
                continue
            member = tarfile.TarInfo(made.name)
            member.size, member.mtime = len(made.content), made.changed
            file.addfile(member, io.BytesIO(made.content))
            lengths[made.name] = len(made.content)
    inside = _members(temporary)
    if {name: span.length for name, span in inside.items()} != lengths or any(pool.map(_wrong, inside.values())):
        raise RunFailed(f"{temporary} does not read as it was written: the disk, or the memory, is at fault")
    settle(temporary, goal)
    return faults


def _is_whole(path: Path, archive: Archive, pool: ProcessPoolExecutor) -> bool:
    """Whether an archive is there, of the originals as they are now; its images are decoded."""
    if not path.is_file():
        return False
    try:
        with tarfile.open(path, errors="surrogateescape") as file:
            times = {member.name: int(member.mtime) for member in file}
        inside = _members(path)
    except (UserError, tarfile.TarError, ValueError):
        return False
    if isinstance(archive.changed, int):
        same = len(times) == archive.images and set(times.values()) <= {archive.changed}
    else:
        same = times == archive.changed
    return same and not any(pool.map(_wrong, inside.values(), chunksize=16))


def _members(path: Path) -> dict[str, Span]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return {
            os.fsdecode(member.name): Span(
                str(path), member.offset, member.length, f"{path}/{os.fsdecode(member.name)}"
            )
            for member in TarFile(descriptor, str(path)).members()
            if member.kind is Kind.FILE
        }
    finally:
        os.close(descriptor)


def _wrong(span: Span) -> bool:
    try:
        load_rgb(span)
    except UserError:
        return True
    return False


def _called(part: Callable[[], list[Made]]) -> list[Made]:
    return part()


def _all(parts: Iterable[list[Made]]) -> Iterator[Made]:
    for part in parts:
        yield from part
