"""Indices that took long to make, kept in the user's cache while what they were made of keeps its size and time."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train._version import __version__
from toe_train.data.sources.index import Index, Stamp

FORM = 2  # of what an index holds; one more where the same files give another one
WORTH_KEEPING = 1.0  # seconds that an index took
# Within this time of its last change, what was listed may have changed again without another time: 2 s on FAT.
UNSETTLED = 2.0
ARRAYS = ("paths", "offsets", "counts", "places")

# What the cache does not take, by where it would be kept; None for what is made each time. What is there is older.
_held: dict[Path, Index | None] = {}
_told: set[Path] = set()  # caches that cannot be written


def folder() -> Path:
    """Return where indices are kept: in `toe_train` of $XDG_CACHE_HOME, or of ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache")) / "toe_train" / "index"


def remembered(identity: list[str], make: Callable[[], Index], anew: bool = False) -> Index:
    """Return the index that was kept of an earlier call, where what it was made of is as it was, or one made now.

    identity: what is indexed, and how. anew: make it now, whatever was kept. Where the cache cannot be written, this
    process holds the index itself, and says so once.
    """
    told = json.dumps([__version__, FORM, *IMG_EXTENSIONS, *identity])
    path = folder() / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"
    if not anew:
        found = _held[path] if path in _held else _read(path)
        if found is not None and all(map(_is_as_it_was, found.stamps)):
            return found
    begin, now = time.perf_counter(), time.time_ns()
    index = make()
    is_settled = all(stamp.changed < now - UNSETTLED * 1e9 for stamp in index.stamps)
    is_worth_it = is_settled and time.perf_counter() - begin >= WORTH_KEEPING
    if _write(path, index) if is_worth_it else _remove(path):
        _held.pop(path, None)
    else:
        _held[path] = index if is_settled else None
    return index


def _is_as_it_was(stamp: Stamp) -> bool:
    try:
        return Stamp.of(stamp.path) == stamp
    except OSError:
        return False


def _read(path: Path) -> Index | None:
    """Return what is kept in a file; None where it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            texts = json.loads(kept["texts"].tobytes())
            arrays = {name: kept[name] for name in ARRAYS}
        return Index(**arrays, **{**texts, "stamps": [Stamp(*stamp) for stamp in texts["stamps"]]})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _write(path: Path, index: Index) -> bool:
    """Keep an index, whole or not at all; return whether the cache takes it: if not, the next start makes it again."""
    texts = {name: value for name, value in index._asdict().items() if name not in ARRAYS}
    content = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, texts=content, **{name: getattr(index, name) for name in ARRAYS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True
    except OSError as fault:
        _remove(temporary)
        if path.parent not in _told:
            why = f"({fault.strerror}): each start makes it"
            print(f"note: the index of the images cannot be kept in {path.parent} {why}")
        _told.add(path.parent)
        return False


def _remove(path: Path) -> bool:
    """Remove a file; return whether it is not there."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
