"""`toe-tools clean`: removes what runs no longer need."""

from __future__ import annotations

import argparse
from pathlib import Path

from toe_train.errors import UserError
from toe_train.runs.folder import RunFolder
from toe_train.runs.leftovers import Leftover, bytes_freed, earlier_runs, find, remove


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Lists and removes it, run by run, once all may be; returns the exit code."""
    folders = [RunFolder(Path(path)) for path in dict.fromkeys(options.runs)]
    for folder in folders:
        if not folder.holds_a_run():
            raise UserError(
                f"{folder.root} is no run folder: it holds neither metrics.jsonl nor checkpoints/; {_runs_in(folder)}"
            )
        folder.require_idle()
        for earlier in earlier_runs(folder) if options.set_aside else ():
            RunFolder(earlier).require_idle()
    for folder in folders:
        found = find(folder)
        going = [one for one in found if not one.stays and (options.set_aside or not one.set_aside)]
        for one in going:
            print(f"{_size(one.bytes):>9}  {one.path}: {one.why}")
        freed = _size(bytes_freed(going))  # which files that are gone could not tell
        if not going:
            print(f"{folder.root}: nothing to remove")
        elif options.dry_run:
            print(f"{folder.root}: {freed} would be freed; nothing is removed")
        else:
            remove(going)
            print(f"{folder.root}: {freed} freed")
        _tell_left([one for one in found if one not in going])
    return 0


def _runs_in(folder: RunFolder) -> str:
    """What to name in its place."""
    inside = sorted(path for path in folder.root.iterdir() if path.is_dir()) if folder.root.is_dir() else []
    runs = [str(path) for path in inside if RunFolder(path).holds_a_run()]
    return f"name those in it: {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}" if runs else "name one"


def _tell_left(left: list[Leftover]) -> None:
    for one in left:
        if one.stays:
            print(f"  left: {one.path}: {one.stays}")
    if aside := [str(one.path) for one in left if not one.stays]:
        print(f"  set aside and left: {', '.join(aside)}; --set-aside removes that too")


def _size(count: int) -> str:
    """Bytes in words."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
