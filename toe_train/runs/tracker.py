"""A tracker: a library of others that is told the lines of `metrics.jsonl`, from a thread of its own.

What no checkpoint holds yet is held back, since neither Weights & Biases nor MLflow takes lines back: the one has
`resume_from` to rewind a run, on its servers alone and not offline; the other keeps a second value of a step beside the
first. So a resumed run goes on in one curve, and its points are those of `metrics.jsonl`, to the last digit; it lags
behind by the time between two checkpoints. Where a run goes on from before what was sent (from an older checkpoint),
the tracker gets a new run with the lines up to there, and the former one stays as it was.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Literal

from tqdm import tqdm

from toe_train.runs.curves import BY_STEP, Point, of_epoch, of_step
from toe_train.runs.log import Record, RunLog, read_metrics

Status = Literal["finished", "failed", "preempted"]

RETRY_SECONDS = 60.0  # after a fault of the library
PATIENCE_SECONDS = 30.0  # for what is left at the run's end
BATCH = 200  # points that are sent together


class Service:
    """What is done with a library; each call may take long, and raise anything.

    Attributes:
        name: of the library.
        where: of the run that was begun: an address or a path, for the reader.
        settles: seconds after which what was sent is kept, even if this process is killed.
    """

    name = ""
    where = ""
    settles = 0.0

    def begin(self, run: str | None) -> str:
        """Opens a new run, or goes on in one; its id. Called again after a fault.

        run: id of a former one; None for a new one.
        """
        raise NotImplementedError

    def send(self, points: Sequence[Point], first: int) -> None:
        """Takes points over epochs and, under `steps/`, over steps.

        first: number of the first of them in the run, from 1.
        """
        raise NotImplementedError

    def finish(self, status: Status) -> None:
        """Nothing more will come."""
        raise NotImplementedError


@dataclass
class _Curve:
    """A run of the library: how many lines it keeps for sure, how many it was sent, and what it is to get."""

    run: str | None = None
    kept: int = 0
    sent: int = 0
    waiting: list[Point] = field(default_factory=list)


class Tracker(RunLog):
    """Tells a library what a run tells, up to its last checkpoint; a fault of the library is told once and tried again.

    Args:
        service: the library.
        metrics: the run's `metrics.jsonl`, which is written before this log is told.
        kept: file of the library's run id and of how many lines it has.
        groups: see `curves.groups_of`.
        steps: of an epoch.
    """

    def __init__(self, service: Service, metrics: Path, kept: Path, groups: Mapping[str, str], steps: int) -> None:
        self._service, self._metrics, self._kept = service, metrics, kept
        self._groups, self._steps = groups, steps
        self._curve = _read(kept)
        self._opened: _Curve | None = None
        self._held: list[Point] = []
        self._lock = Lock()  # of the curve, never held while the library is at work
        self._awake, self._ending = Event(), Event()
        self._status: Status | None = None
        self._fault = ""
        self._thread = Thread(target=self._work, name=service.name, daemon=True)

    def start(self, record: Record) -> None:
        self._take_up()
        if not self._thread.ident:
            self._thread.start()
        self._awake.set()

    def rewind(self, epoch: int, step: int) -> None:
        self._take_up()

    def step(self, record: Record) -> None:
        self._held.append(self._point(record, "step"))

    def epoch(self, record: Record) -> None:
        self._held.append(self._point(record, "epoch"))

    def saved(self) -> None:
        with self._lock:
            self._curve.waiting += self._held
        self._held = []
        self._awake.set()

    def end(self, status: Status) -> None:
        """Waits for what is left, a little; `close` does nothing, since a run has a trainer after another."""
        if not self._thread.ident:
            return
        self._status = status
        self._ending.set()
        self._awake.set()
        self._thread.join(PATIENCE_SECONDS)
        with self._lock:
            left = len(self._curve.waiting)
        if left or self._thread.is_alive():
            later = "" if status == "finished" else ", and a resume sends them"
            self._tell(f"{left} lines, or the run's end, did not come to it; metrics.jsonl has them{later}")

    def _take_up(self) -> None:
        """What `metrics.jsonl` holds now is of the past: what of it the library lacks is to be sent."""
        lines = read_metrics(self._metrics, "step", "epoch")
        points = [self._point(record, record["kind"]) for record in lines]
        with self._lock:
            if len(points) < self._curve.sent:
                self._tell(f"run {self._curve.run} has lines after this place and stays as it is; a new one is begun")
                self._curve = _Curve(waiting=points)
            else:
                self._curve.waiting = points[self._curve.sent :]
        self._held = []

    def _point(self, record: Record, kind: str) -> Point:
        if kind == "epoch":
            return of_epoch(record, self._groups)
        point = of_step(record, self._steps)
        return Point(point.axis, point.at, {f"{BY_STEP}/{tag}": value for tag, value in point.values.items()})

    def _work(self) -> None:
        while True:
            self._awake.clear()
            status = self._status
            try:
                self._send()
                if status is not None:
                    self._service.finish(status)
                elif self._curve.sent > self._curve.kept and self._ending.wait(self._service.settles):
                    continue
                self._keep(self._opened)
            except Exception as fault:  # of another's library: nothing of it may end the run
                self._tell_fault(fault)
            else:
                if self._fault:
                    self._tell("it works again")
                self._fault = ""
            if status is not None:
                return
            self._awake.wait(RETRY_SECONDS if self._fault else None)

    def _send(self) -> None:
        while True:
            curve = self._curve
            if self._opened is not curve:
                self._begin(curve)
            batch = curve.waiting[:BATCH]
            if not batch:
                return
            self._service.send(batch, curve.sent + 1)
            with self._lock:
                curve.sent += len(batch)
                del curve.waiting[: len(batch)]

    def _keep(self, curve: _Curve | None) -> None:
        """Writes down what the library has; what is sent twice after a kill is the same point."""
        with self._lock:
            if curve is not None and curve is self._curve:
                curve.kept = curve.sent
                _write(self._kept, curve)

    def _begin(self, curve: _Curve) -> None:
        if self._opened is not None:
            self._service.finish("preempted")
            self._opened = None
        curve.run = self._service.begin(curve.run)
        with self._lock:
            if curve is self._curve:
                _write(self._kept, curve)
        self._opened = curve
        if not self._fault:
            self._tell(f"run {curve.run}, {self._service.where}")

    def _tell_fault(self, fault: Exception) -> None:
        self._opened = None
        if not self._fault:
            said = (str(fault).strip() or repr(fault)).splitlines()[0][:200]
            self._tell(f"{said}; the run goes on, and it is tried again; metrics.jsonl has all lines")
        self._fault = type(fault).__name__

    def _tell(self, text: str) -> None:
        tqdm.write(f"{self._service.name}: {text}", file=sys.stdout)
        sys.stdout.flush()


def _read(kept: Path) -> _Curve:
    try:
        values = json.loads(kept.read_text(encoding="utf-8"))
        return _Curve(str(values["run"]), int(values["lines"]), int(values["lines"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or torn
        return _Curve()


def _write(kept: Path, curve: _Curve) -> None:
    kept.parent.mkdir(exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.tmp")
    temporary.write_text(json.dumps({"run": curve.run, "lines": curve.kept}) + "\n", encoding="utf-8")
    os.replace(temporary, kept)
