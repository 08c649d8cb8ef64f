"""A folder that a tool makes: whole, or not there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from toe_train.errors import UserError


def require_new(folder: Path, option: str = "--output") -> None:
    """Raise UserError where the folder of an option has something in it, or a file stands in its place."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{option} {folder} is not empty: name a new folder")
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{option} {folder}: {place} is a file and no folder; name a new folder elsewhere")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which takes its place after the block; nothing where the block fails.

    Raises UserError where the folder is not new or cannot be made.
    """
    require_new(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
        place.mkdir()
    except PermissionError as error:
        raise UserError(f"--output {folder} cannot be made ({error.strerror}); name another folder") from None
    try:
        yield place
        os.replace(place, folder.resolve())
    finally:
        shutil.rmtree(place, ignore_errors=True)
