"""Which run folders a person means who names some, or folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toe_train.errors import UserError
from toe_train.recipes import load_saved
from toe_train.runs.folder import SET_ASIDE, RunFolder


@dataclass(frozen=True)
class FoundRuns:
    """Run folders, and a line for each folder that was looked at and passed over."""

    runs: list[Path]
    passed_over: list[str]


def run_folders(named: Sequence[Path]) -> FoundRuns:
    """The run folders among `named`, and those directly below the others, by name; none of them twice.

    A folder that is named counts as it is. Below another one, what is no run, what cannot be read and what
    `--resume never` set aside is passed over.

    Raises:
        UserError: one is neither a run folder nor holds any.
    """
    runs: dict[Path, Path] = {}
    passed_over = []
    for path in named:
        if not _lacks(path):
            _add(runs, path)
            continue
        below = sorted(inner for inner in path.iterdir() if inner.is_dir()) if path.is_dir() else []
        whys = {inner: _fault(inner) for inner in below if not inner.name.startswith(".")}
        for inner in (inner for inner, why in whys.items() if why is None):
            _add(runs, inner)
        told = [f"passed over: {inner}: {why}" for inner, why in whys.items() if why is not None]
        if len(told) == len(whys):
            lacks = _lacks(path) if path.is_dir() else "there is no such folder"
            fault = f"{path} is not a run folder: {lacks}, and no run folder lies in it"
            raise UserError("\n  ".join([f"{fault}. Name one that toe-train wrote, or a folder of them", *told]))
        passed_over += told
    return FoundRuns(list(runs.values()), passed_over)


def _add(runs: dict[Path, Path], path: Path) -> None:
    runs.setdefault(path.resolve(), path)


def _lacks(root: Path) -> str:
    """What a path lacks of a run folder, in words; empty for one."""
    folder = RunFolder(root)
    missing = [path.name for path in (folder.config, folder.metrics) if not path.is_file()]
    return f"it holds no {' and no '.join(missing)}" if missing else ""


def _fault(root: Path) -> str | None:
    """Why a folder that was not named itself is passed over; None for a run that can be reported."""
    if missing := _lacks(root):
        return missing
    if SET_ASIDE.fullmatch(root.name):
        return "it was set aside by --resume never; name it to report it"
    try:
        load_saved(RunFolder(root).config)
    except UserError as error:
        return " ".join(str(error).split())
    return None
