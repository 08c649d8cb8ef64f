"""Where a run stands: what a checkpoint carries beside the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes

Losses = tuple[float, float]  # sum and number of the finite ones, each counted as often as it has images


@dataclass
class Progress:
    """The place in the run, what the epoch gave so far, and what the run took."""

    epoch: int = 0  # the epoch to train next, or to go on with
    step: int = 0  # its optimiser steps that are done
    logged: int = 0  # of these, the ones that a log line has told of
    losses: Losses = (0.0, 0.0)  # of these, over all processes
    window: list[Losses] = field(default_factory=list)  # of the steps since then, by rank
    skipped: int = 0  # steps of the epoch that were left out because they were not finite
    clock: tuple[float, float, float] = (0.0, 0.0, 0.0)  # seconds of the epoch so far: all, waiting, computing
    best: float = -math.inf  # best value of the chosen metric
    rollbacks: int = 0  # times that the run went back to a checkpoint, and on in another order
    compute_seconds: float = 0.0  # of all processes, by the paper's clock: without loading and mixing
    train_seconds: float = 0.0  # of all processes, by the wall, without evaluation

    def after_epoch(self, best: float) -> Progress:
        """At the beginning of the next epoch."""
        return Progress(
            epoch=self.epoch + 1,
            best=best,
            rollbacks=self.rollbacks,
            compute_seconds=self.compute_seconds,
            train_seconds=self.train_seconds,
        )

    def own_window(self, processes: Processes) -> Losses:
        """This process's share of a window that a checkpoint cut; an equal one where the processes are others now."""
        if len(self.window) == processes.world_size:
            return self.window[processes.rank]
        count = processes.world_size
        return sum(total for total, _ in self.window) / count, sum(number for _, number in self.window) / count

    def account(self, clock: EpochClock, processes: Processes) -> None:
        """Adds the device time since the last call, of as many processes as there are now, to the run's."""
        now = processes.largest(list(clock.read()))
        elapsed, _, compute = (after - before for after, before in zip(now, self.clock, strict=True))
        self.train_seconds += elapsed * processes.world_size
        self.compute_seconds += compute * processes.world_size
        self.clock = (now[0], now[1], now[2])
