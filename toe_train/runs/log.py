"""What a run tells: `metrics.jsonl`, behind an interface that does nothing by default.

Others of its kind: console.py, tensorboard.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

Record = dict[str, Any]
KEYS: dict[str, tuple[str, ...]] = {
    "start": (),
    "step": ("epoch", "step"),
    "epoch": ("epoch",),
}  # that a line of a kind cannot do without
NUMBERS = ("val_", "ema_", "gpu_hours")  # keys begin so whose values are numbers, or null


class RunLog:
    """Receives what happens in a run; each call is a no-op here, and on every process but the main one."""

    def start(self, record: Record) -> None:
        """A process group begins or resumes: versions, command, first epoch."""

    def epoch_begins(self, epoch: int, stage: int, tokens: str, steps: int) -> None:
        """An epoch of `steps` optimiser steps begins; `tokens` reads kept/all."""

    def step(self, record: Record) -> None:
        """Once in `log_every` steps: epoch, step, lr, train_loss, images_per_second, data_wait_share."""

    def advance(self) -> None:
        """One optimiser step is done."""

    def epoch(self, record: Record) -> None:
        """An epoch is done; the keys are those of the run folder's description in the README."""

    def rewind(self, epoch: int, step: int) -> None:
        """The run goes back to after `step` steps of `epoch`: what came later did not happen."""

    def saving(self) -> None:
        """A checkpoint of all that was told so far is about to be written."""

    def saved(self) -> None:
        """A checkpoint holds all that was told so far: it will not be taken back by a resume."""

    def picture(self, tag: str, picture: Tensor, epoch: int) -> None:
        """A picture (3, H, W) in 0..1, of an epoch from 0."""

    def note(self, text: str) -> None:
        """A line for the reader."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines(RunLog):
    """One JSON object a line; lines of what comes after `epoch` and `step`, left by a broken-off run, are dropped."""

    def __init__(self, path: Path, epoch: int, step: int) -> None:
        self.path = path
        self._reopen(epoch, step)

    def rewind(self, epoch: int, step: int) -> None:
        self.file.close()
        self._reopen(epoch, step)

    def _reopen(self, epoch: int, step: int) -> None:
        def is_before(record: Record) -> bool:
            if record["kind"] == "start":
                return True
            return record["epoch"] < epoch or (record["epoch"] == epoch and record.get("step", step) < step)

        _keep_lines(self.path, is_before)
        self.file = self.path.open("a", encoding="utf-8")

    def start(self, record: Record) -> None:
        self._write("start", record)

    def step(self, record: Record) -> None:
        self._write("step", record)

    def epoch(self, record: Record) -> None:
        self._write("epoch", record)

    def saving(self) -> None:
        os.fsync(self.file.fileno())  # a resume drops the lines behind its checkpoint, and writes none before it

    def close(self) -> None:
        self.file.close()

    def _write(self, kind: str, record: Record) -> None:
        self.file.write(_line({"kind": kind, **record}))
        self.file.flush()


class Several(RunLog):
    """Passes everything on to each of `logs`."""

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self.logs = logs


def _to_each(name: str) -> Callable[..., None]:
    """A method of `Several` that calls the method `name` of each log."""

    def passed_on(several: Several, *given: Any, **named: Any) -> None:
        for log in several.logs:
            getattr(log, name)(*given, **named)

    return passed_on


for _name in vars(RunLog):
    if not _name.startswith("_"):
        setattr(Several, _name, _to_each(_name))


def read_metrics(path: Path, *kinds: str) -> list[Record]:
    """The records of these kinds in a `metrics.jsonl`, in order; what is no whole line of a run is left out."""
    return [record for record in _records(path) if record.get("kind") in kinds]


def _records(path: Path) -> list[Record]:
    return [record for record in _lines(path) if record is not None]


def broken_lines(path: Path) -> list[int]:
    """The numbers, from 1, of the lines in a `metrics.jsonl` that `read_metrics` leaves out: torn, or not a run's."""
    return [number for number, record in enumerate(_lines(path), 1) if record is None]


def tell_broken(path: Path) -> list[str]:
    """A note for the reader on those lines; none where there are none."""
    numbers = broken_lines(path)
    if not numbers:
        return []
    shown = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    which = f"line {shown} is no whole line" if len(numbers) == 1 else f"lines {shown} are no whole lines"
    return [f"note: {path}: {which} of a run ({len(numbers)} in all) and left out"]


def _lines(path: Path) -> list[Record | None]:
    """The record of each line, with None for numbers that are not finite; None where it is broken."""
    records: list[Record | None] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        records.append(_finite(record) if _is_whole(record) else None)
    return records


def _is_whole(record: Any) -> bool:
    """Whether it is a line of a run."""
    needed = KEYS.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if needed is None or not all(key in record for key in needed):
        return False
    values = [value for key, value in record.items() if key.startswith(NUMBERS) and value is not None]
    return all(isinstance(value, (int, float)) for value in values)


def _keep_lines(path: Path, wanted: Callable[[Record], bool]) -> None:
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(_line(record) for record in _records(path) if wanted(record))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _line(record: Record) -> str:
    """A record as a line of JSON, which has no number for what is not finite: null."""
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
