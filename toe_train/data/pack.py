"""A smaller copy of an image folder: every image as a JPEG whose shorter side is chosen, for loaders with few cores.

A file has its name only once it is whole, read back and on the disk, so that a copy that was broken off is continued.
It has the time of its original too: an original that was changed since is packed anew.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.listing import all_images
from toe_train.data.sources.orientation import UPRIGHT, as_exif, orientation_of
from toe_train.errors import NoMemory, RunFailed, UserError, of_system

RECORD = "pack.json"
JPEG_NAMES = (".jpg", ".jpeg")
LONGEST_SIDE = 65_500  # of a JPEG, to libjpeg
TIME_STEPS = (1, 100, 1000, 10**9)  # of file systems, in nanoseconds


@dataclass(frozen=True)
class Packing:
    """How images are packed: the shorter side in pixels, at most, and JPEG's quality."""

    short_side: int
    quality: int


@dataclass(frozen=True)
class Packed:
    """What `pack_images` did.

    Attributes:
        written: images.
        found: images that were there already.
        faults: a message for each image that is left out.
        strays: paths of images in the copy that have no original.
        notes: a line on each thing that was passed over.
    """

    written: int
    found: int
    faults: list[str]
    strays: list[str]
    notes: list[str]


def pack_images(source: Path, output: Path, packing: Packing, workers: int, progress: bool = False) -> Packed:
    """Write a smaller copy of every image below a folder.

    An image whose shorter side is larger is brought down to it (bicubic, antialiased, aspect kept); a JPEG that is as
    small already is copied byte for byte. Files that are not JPEGs get ".jpg" behind their name. `output` also gets a
    record of what was packed and how. A copy that is there is decoded, and made anew where it is not whole or its
    original has another time than when it was packed. An EXIF orientation is kept.

    Args:
        source: e.g. ImageNet's root with train/ and val/.
        output: outside `source`; continued if it is there.
        packing: how.
        workers: processes.
        progress: show a bar.

    Raises:
        UserError: a source without images, an output inside it or packed otherwise or from another source, or a value
            out of range.
        RunFailed: the disk does not take a file, or a process is killed.
    """
    require_in_range(packing, workers)
    if not source.is_dir():
        raise UserError(f"--images {source} is not a folder; give the one that holds train/ and val/")
    require_apart(source, output)
    names, notes = all_images(source)
    if not names:
        told = f"; {'; '.join(notes)}" if notes else ""
        raise UserError(f"{source} holds no images ({', '.join(IMG_EXTENSIONS)}){told}: give the folder above them")
    uses = Counter(map(packed_name, names))
    if shared := [name for name in names if uses[packed_name(name)] > 1]:
        raise UserError(
            f"--images: {' and '.join(shared[:2])} would both be packed as {packed_name(shared[0])}; rename"
        )
    written, faults = 0, []
    try:
        prepare(source, output, packing)
        with ProcessPoolExecutor(workers, initializer=leave_interrupts_to_the_main_process) as pool:
            results = pool.map(partial(_pack, source, output, packing), names, chunksize=16)
            for new, fault in tqdm(results, total=len(names), desc="packing", unit="image", disable=not progress):
                written += new
                faults += [fault] if fault else []
        strays = [str(output / name) for name in all_images(output)[0] if name not in uses]
    except OSError as error:
        raise of_system(error) from None
    except BrokenProcessPool:
        raise RunFailed("a process was killed, perhaps for want of memory; use fewer --workers to continue") from None
    return Packed(written, len(names) - written - len(faults), faults, strays, notes)


def require_in_range(packing: Packing, workers: int) -> None:
    """Raise UserError where a value cannot be."""
    for name, value, low, high in (
        ("short-side", packing.short_side, 1, LONGEST_SIDE),
        ("quality", packing.quality, 1, 100),
        ("workers", workers, 1, 4096),
    ):
        if not low <= value <= high:
            raise UserError(
                f"--{name} {value} must be from {low} to {high}; the nearest is {min(max(value, low), high)}"
            )


def require_apart(source: Path, output: Path) -> None:
    """Raise UserError where one of them lies in the other."""
    if output.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"--output {output} and --images {source} must lie apart; name another folder for the copy")


def prepare(source: Path, output: Path, packing: Packing, to: str = "folder") -> None:
    """Make `output`, or see that it was packed alike from the same source. to: the form of the copy."""
    record = output / RECORD
    if record.is_file():
        try:
            noted = json.loads(record.read_text(encoding="utf-8"))
            former_source, form = noted.pop("source"), noted.pop("to", "folder")
            former = Packing(**noted)
        except (ValueError, TypeError, AttributeError, KeyError):
            raise UserError(
                f"{record} does not say what was packed and how; remove {output}, or name another --output"
            ) from None
        if former_source != str(source.resolve()):
            raise UserError(
                f"--output {output} was packed from {former_source}, and --images is {source.resolve()}: name another "
                f"folder for the copy; if the images were only moved, put their new place into {record}"
            )
        if form != to:
            raise UserError(
                f"--output {output} was packed with --to {form}: use it to continue, or name another folder"
            )
        if former != packing:
            raise UserError(
                f"--output {output} was packed with --short-side {former.short_side} --quality {former.quality}: use "
                "these to continue it, or name another folder"
            )
        for temporary in output.rglob(".*.tmp"):  # of a packing that was broken off
            temporary.unlink()
        return
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} holds files that no packing made; name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    form_of = {} if to == "folder" else {"to": to}
    _write(record, json.dumps({"source": str(source.resolve()), **asdict(packing), **form_of}).encode())


def _pack(source: Path, output: Path, packing: Packing, name: str) -> tuple[bool, str | None]:
    """Pack one image; whether it was written, and what is wrong with it."""
    origin, goal = source / name, output / packed_name(name)
    if _is_whole(goal, origin, packing):
        return False, None
    try:
        changed = origin.stat().st_mtime_ns  # before it is read: what is written meanwhile is packed next time
        image = reduced(load_rgb(origin), packing.short_side)
        if max(image.size) > LONGEST_SIDE:
            width, height = image.size
            raise UserError(f"{origin}: {width}x{height} is more than a JPEG holds ({LONGEST_SIDE} a side); cut it")
    except OSError as fault:
        return _left_out(goal, f"{origin} cannot be read ({fault.strerror}): replace or remove it")
    except (UserError, NoMemory) as fault:
        return _left_out(goal, str(fault))
    goal.parent.mkdir(parents=True, exist_ok=True)
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    if goal.name == origin.name and is_small_jpeg(origin, packing.short_side):
        shutil.copyfile(origin, temporary)
    else:
        turn = orientation_of(origin)
        exif = {} if turn == UPRIGHT else {"exif": as_exif(turn)}  # so that the copy is turned as its original is
        image.save(temporary, "JPEG", quality=packing.quality, **exif)
    load_rgb(temporary)  # as it can be read from now on
    os.utime(temporary, ns=(changed, changed))
    settle(temporary, goal)
    return True, None


def packed_name(name: str) -> str:
    """Return what an image's copy is called."""
    return name if name.lower().endswith(JPEG_NAMES) else f"{name}.jpg"


def leave_interrupts_to_the_main_process() -> None:
    """In a process of a pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def reduced(image: Image.Image, short_side: int) -> Image.Image:
    """Return an image whose shorter side is `short_side` at most."""
    if min(image.size) <= short_side:
        return image
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _left_out(goal: Path, fault: str) -> tuple[bool, str]:
    """The result for an image that cannot be packed; a copy of what it was before goes."""
    goal.unlink(missing_ok=True)
    return False, fault


def _is_whole(path: Path, origin: Path, packing: Packing) -> bool:
    """Whether a packed image is there, of the original as it is now; it is decoded."""
    try:
        copied, original = path.stat().st_mtime_ns, origin.stat().st_mtime_ns
        same = any(copied == original // step * step for step in TIME_STEPS)
        is_small = same and min(load_rgb(path).size) <= packing.short_side
        return is_small and orientation_of(path) == orientation_of(origin)
    except (OSError, UserError):
        return False


def is_small_jpeg(file: Path | BinaryIO, short_side: int) -> bool:
    """Whether it is a JPEG that needs no packing."""
    with Image.open(file) as image:
        return image.format == "JPEG" and min(image.size) <= short_side


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    settle(temporary, path)


def settle(temporary: Path, path: Path) -> None:
    """Give a whole file its name once the disk has it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
