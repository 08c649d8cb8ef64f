"""What lies in and beside a run folder and the run no longer needs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toe_train.runs import sealed
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.folder import SET_ASIDE, RunFolder

KEPT = re.compile(r".+\.kept-\d+")  # see `checkpoints.keep`
DAMAGED = re.compile(r".+\.damaged-\d+")  # see `Checkpoints.heal`
TEMPORARY = re.compile(r"\..+\.tmp|\.writable")  # of a write that was broken off


@dataclass(frozen=True)
class Leftover:
    """A file, or the folder of an earlier run.

    Attributes:
        path: of it.
        why: it is there.
        set_aside: whether it was put away for a person to look at, and goes only where one asks for that.
        stays: why it has to stay for now, in words; empty where it can go.
    """

    path: Path
    why: str
    set_aside: bool = False
    stays: str = ""

    @property
    def bytes(self) -> int:
        """Of its content, whatever other names that has."""
        return sum(file.lstat().st_size for file in self.files())

    def files(self) -> list[Path]:
        """The names that go with it; of a link the link."""
        if self.path.is_symlink() or not self.path.is_dir():
            return [self.path]
        return [path for path in self.path.rglob("*") if path.is_symlink() or not path.is_dir()]


def find(folder: RunFolder) -> list[Leftover]:
    """What can go, and what cannot yet. `last.pt`, `previous.pt` and `best.pt` never can.

    Where none of them is whole, kept and temporary files stay, since one of them may be the only checkpoint that is;
    and temporary ones where the file system has no locks, since they may be in use.

    Args:
        folder: of a run, locked, so that nobody trains in it.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    names = sorted(path for place in (folder.root, folder.checkpoints) if place.is_dir() for path in place.iterdir())
    files = [path for path in names if path.is_symlink() or not path.is_dir()]
    kept, temporary = ([path for path in files if kind.fullmatch(path.name)] for kind in (KEPT, TEMPORARY))
    regular = (checkpoints.last, checkpoints.previous, checkpoints.best)
    is_safe = bool(kept + temporary) and any(path.exists() and sealed.is_whole(path) for path in regular)
    stays = "" if is_safe else "no checkpoint of the run is whole, and one of these may be"
    in_use = "" if folder.has_locks else "this file system has no locks, so a run may be under way and writing it"
    found = [Leftover(path, "kept when the run wrote over it", stays=stays) for path in kept]
    found += [Leftover(path, "of a write that was broken off", stays=stays or in_use) for path in temporary]
    found += [Leftover(path, "a damaged checkpoint", set_aside=True) for path in files if DAMAGED.fullmatch(path.name)]
    return found + [Leftover(path, "an earlier run of this folder", set_aside=True) for path in earlier_runs(folder)]


def earlier_runs(folder: RunFolder) -> list[Path]:
    """Folders of the runs that `RunFolder.set_aside` renamed."""
    return [
        path
        for path in sorted(folder.root.parent.iterdir())
        if (name := SET_ASIDE.fullmatch(path.name))
        and name[1] == folder.root.name
        and path.is_dir()
        and RunFolder(path).holds_a_run()
    ]


def bytes_freed(leftovers: Sequence[Leftover]) -> int:
    """Bytes on the disk that go with them: of content that no other name keeps."""
    names: dict[tuple[int, int], list[os.stat_result]] = {}
    for status in (file.lstat() for one in leftovers for file in one.files()):
        names.setdefault((status.st_dev, status.st_ino), []).append(status)
    return sum(found[0].st_size for found in names.values() if len(found) >= found[0].st_nlink)


def remove(leftovers: Iterable[Leftover]) -> None:
    """Removes them; what is behind a link stays."""
    for one in leftovers:
        if one.path.is_symlink() or not one.path.is_dir():
            one.path.unlink()
        else:
            RunFolder(one.path).require_idle()
            shutil.rmtree(one.path)
