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
import time
from abc import ABC, abstractmethod
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
HURRY_SECONDS = 10.0  # where a signal stopped it: schedulers kill after about 30 s, and a resume sends what is left
BATCH = 200  # points that are sent together


class Service(ABC):
    """What is done with a library; each call may take long, and raise anything.

    Attributes:
        name: of the library.
        where: of the run that was begun: an address or a path, for the reader.
        settles: seconds after which what was sent is kept, even if this process is killed.
    """

    name = ""
    where = ""
    settles = 0.0

    @abstractmethod
    def begin(self, run: str | None) -> str:
        """Opens a new run, or goes on in one; its id. Called again after a fault; no other run is open then.

        run: id of a former one; None for a new one, or for that of a call before which failed.
        """

    @abstractmethod
    def send(self, points: Sequence[Point], first: int) -> None:
        """Takes points over epochs and, under `steps/`, over steps.

        first: number of the first of them in the run, from 1.
        """

    @abstractmethod
    def finish(self, status: Status) -> None:
        """Nothing more will come."""


@dataclass
class _Curve:
    """A run of the library: lines that it keeps for sure, was sent, has perhaps; and what it is to get."""

    run: str | None = None
    kept: int = 0
    sent: int = 0
    given: int = 0  # at least those sent: a call that is under way, or failed, has perhaps brought some
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
        self._is_sound = False  # whether no fault came since it was opened
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
        """Nothing more will come; `close` does nothing, since a run has a trainer after another."""
        self._status = status
        self._ending.set()
        self._awake.set()

    def wait(self, until: float) -> None:
        """After `end`: for what is left, and no longer than up to a time of `time.monotonic`."""
        if not self._thread.ident:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            left = len(self._curve.waiting)
        if left or self._thread.is_alive():
            later = "" if self._status == "finished" else ", and a resume sends them"
            self._tell(f"{left} lines, or the run's end, did not come to it; metrics.jsonl has them{later}")

    def _take_up(self) -> None:
        """What `metrics.jsonl` holds now is of the past: what of it the library lacks is to be sent."""
        lines = read_metrics(self._metrics, "step", "epoch")
        points = [self._point(record, record["kind"]) for record in lines]
        with self._lock:
            if len(points) < self._curve.given:
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
            if self._opened is not curve or not self._is_sound:
                self._begin(curve)
            with self._lock:
                batch = curve.waiting[:BATCH]
                curve.given = max(curve.given, curve.sent + len(batch))
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
        if self._opened is not None and self._opened is not curve:
            self._opened = None
            self._service.finish("preempted")
        curve.run = self._service.begin(curve.run)
        with self._lock:
            if curve is self._curve:
                _write(self._kept, curve)
        self._opened, self._is_sound = curve, True
        if not self._fault:
            self._tell(f"run {curve.run}, {self._service.where}")

    def _tell_fault(self, fault: Exception) -> None:
        self._is_sound = False
        if not self._fault:
            said = (str(fault).strip() or repr(fault)).splitlines()[0][:200]
            again = "" if self._status is not None else "; the run goes on, and it is tried again"
            self._tell(f"{said}{again}; metrics.jsonl has all lines")
        self._fault = type(fault).__name__

    def _tell(self, text: str) -> None:
        tqdm.write(f"{self._service.name}: {text}", file=sys.stdout)
        sys.stdout.flush()


def end_all(trackers: Sequence[Tracker], status: Status) -> None:
    """Tells them how the run ended, and waits a little, for all of them together."""
    until = time.monotonic() + (HURRY_SECONDS if status == "preempted" else PATIENCE_SECONDS)
    for tracker in trackers:
        tracker.end(status)
    for tracker in trackers:
        tracker.wait(until)


def _read(kept: Path) -> _Curve:
    try:
        values = json.loads(kept.read_text(encoding="utf-8"))
        lines = int(values["lines"])
        return _Curve(str(values["run"]), lines, lines, lines)
    except (OSError, ValueError, KeyError, TypeError):  # none, or torn
        return _Curve()


def _write(kept: Path, curve: _Curve) -> None:
    kept.parent.mkdir(exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.tmp")
    temporary.write_text(json.dumps({"run": curve.run, "lines": curve.kept}) + "\n", encoding="utf-8")
    os.replace(temporary, kept)
