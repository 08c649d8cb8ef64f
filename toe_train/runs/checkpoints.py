"""The checkpoints of a run: found whole, refused where they do not belong.

`last.pt` is the newest, `previous.pt` the one before, to fall back on, and `best.pt` the best by the chosen metric.
Each is a sealed file (`sealed.py`) of tensors and plain values. Its keys come from `training/loop.py`, and those of the
weights and the optimiser from `training/step.py`; what it belongs to, from `build/resume.py`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toe_train.errors import RunFailed, UserError
from toe_train.runs import sealed

FORMAT = 2
KEYS = {"progress", "model", "ema", "optimizer", "scaler", "config", "classes", "images", "versions"}


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's dictionary, on the CPU.

    Raises:
        UserError: no such file, damaged or truncated, or not one of this program's checkpoints.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"checkpoint {path} is a configuration; give a run folder, or a .pt file in its checkpoints/")
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; name a file in it{_others(path / 'last.pt')}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a run's .pt file")
    try:
        state = sealed.read(path)
    except sealed.Damaged as damage:
        raise UserError(f"checkpoint {path} cannot be used: {damage}{_others(path)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= KEYS:
        raise UserError(
            f"checkpoint {path} is not of toe-train's format {FORMAT}; plain weights cannot be resumed from, use a "
            f"file from a run folder's checkpoints/"
        )
    return state


def newest_in(path: Path) -> Path:
    """The newest checkpoint of a run folder, or of its `checkpoints/`; any other path as it is."""
    return next((file for file in (path / "checkpoints/last.pt", path / "last.pt") if file.is_file()), path)


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.previous, self.best = (folder / f"{name}.pt" for name in ("last", "previous", "best"))

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Writes `last.pt`, keeping the former one as `previous.pt`, and `best.pt` where it is the best so far.

        Raises:
            RunFailed: the disk does not take it; what was there before is whole.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The new one is whole on the disk before a name changes. In this order a crash between any two steps leaves
            # a complete last.pt, and a best.pt that is at least as good as last.pt knows.
            with sealed.written(self.last, state) as new:
                if self.last.exists():
                    sealed.replace_by_link(self.last, self.previous)
                if is_best:
                    sealed.replace_by_link(new, self.best)
        except OSError as error:
            raise RunFailed(
                f"the checkpoint cannot be written to {self.folder} ({error.strerror or error}); what was there before "
                "is whole",
                then="make room or give the right to write, then start {command} again",
            ) from error

    def watch(self) -> Callable[[], bool]:
        """A function that tells whether `last.pt` has been written since now."""
        before = _identity(self.last)
        return lambda: _identity(self.last) not in (None, before)

    def is_of_any(self, jobs: dict[str, tuple[str, float]]) -> bool:
        """Whether the newest one that can be read was written by one of them (see `jobs.restarted_jobs`)."""
        found = self.newest() if jobs else None
        if found is None:
            return False
        writers, written = found[1].get("jobs", {}), found[0].stat().st_mtime
        return any(writers.get(name) == value and written >= began for name, (value, began) in jobs.items())

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest one that can be read; None where there is none."""
        for path in (self.last, self.previous):
            with contextlib.suppress(UserError):
                return path, read(path)
        return None

    def find(self, resume: str) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that `resume` (auto, never, or a path, of a run too) asks for, or None to start anew."""
        if resume == "never" or (resume == "auto" and not self.last.exists()):
            return None
        path = self.last if resume == "auto" else newest_in(Path(resume))
        if not path.exists() and (near := difflib.get_close_matches(resume, ("auto", "never"), cutoff=0.6)):
            raise UserError(f"--resume {resume}: there is no such checkpoint; did you mean --resume {near[0]}?")
        return path, read(path)

    def heal(self) -> list[str]:
        """Sets damaged ones aside and puts the newest healthy one in `last.pt`'s place; a line for each thing done.

        Left-over temporary files of a killed save are removed, but for a whole one where nothing else is whole.

        Raises:
            UserError: there is no healthy one.
        """
        told: list[str] = []
        healthy = [path for path in (self.last, self.previous, self.best) if path.exists() and _is_healthy(path, told)]
        for temporary in sorted(self.folder.glob(".*.tmp")):
            if not healthy and sealed.is_whole(temporary):
                os.replace(temporary, self.last)
                told.append(f"continuing from a checkpoint that was whole when its save was broken off: {self.last}")
                healthy = [self.last]
            else:
                temporary.unlink()
        if healthy:
            if self.last not in healthy:  # damaged, or a save was killed before it had its name
                sealed.replace_by_link(healthy[0], self.last)
                told.append(f"continuing from {healthy[0]} instead")
            return told
        damaged = sorted(self.folder.glob("*.damaged-*"))
        if damaged:
            told = told or [f"{path} was set aside as damaged" for path in damaged]
            raise UserError(
                "\n".join(told) + "\nno healthy checkpoint is left; start anew with --resume never, or name one "
                "with --resume PATH"
            )
        return told


def keep(checkpoints: Checkpoints, metrics: Path) -> list[str]:
    """Second names for a run's checkpoints and metric lines, which it will write over; a line for each."""
    told = []
    for path in (checkpoints.last, checkpoints.previous, checkpoints.best, metrics):
        if path.exists():
            kept = _free_name(path, "kept")
            sealed.replace_by_link(path, kept)
            told.append(f"{path}, which the run will write over, stays as {kept}")
    return told


def _identity(path: Path) -> tuple[int, int] | None:
    """What differs between files that had a name one after the other; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_healthy(path: Path, told: list[str]) -> bool:
    try:
        sealed.verify(path)
    except sealed.Damaged as damage:
        aside = _free_name(path, "damaged")
        path.rename(aside)
        told.append(f"checkpoint {path} is damaged ({damage}); it is set aside as {aside}")
        return False
    return True


def _free_name(path: Path, what: str) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{what}-{number}")).exists():
        number += 1
    return free


def _others(path: Path) -> str:
    others = [other for name in ("previous", "best") if (other := path.with_name(f"{name}.pt")).exists()]
    return f"; {others[0]} may be whole" if others and others[0] != path else ""
