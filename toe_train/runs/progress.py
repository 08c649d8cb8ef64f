"""Where a run stands: what a checkpoint carries beside the tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes

# Sum and number of the finite losses, each counted as often as it has images, and the sums of their terms.
Losses = tuple[float, ...]
Tokens = tuple[float, float, float]  # patch tokens, those kept, and images, all summed


@dataclass
class Progress:
    """The place in the run, what the epoch gave so far, and what the run took."""

    epoch: int = 0  # the epoch to train next, or to go on with
    step: int = 0  # its optimiser steps that are done
    logged: int = 0  # of these, the ones that a log line has told of
    losses: Losses = (0.0, 0.0)  # of these, over all processes
    window: list[Losses] = field(default_factory=list)  # of the steps since then, by rank
    tokens: Tokens = (0.0, 0.0, 0.0)  # of the epoch's logged steps, over all processes
    token_window: list[Tokens] = field(default_factory=list)  # as `window`
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

    def own_window(self, processes: Processes, terms: int) -> tuple[list[float], list[float]]:
        """This process's shares of the windows that a checkpoint cut: of losses with so many terms, and of tokens."""
        return _share(self.window, processes, 2 + terms), _share(self.token_window, processes, 3)

    def add(self, losses: Sequence[float], tokens: Sequence[float]) -> None:
        """Takes up what a log line tells."""
        self.losses = tuple(a + b for a, b in zip_longest(self.losses, losses, fillvalue=0.0))
        self.tokens = (self.tokens[0] + tokens[0], self.tokens[1] + tokens[1], self.tokens[2] + tokens[2])

    def account(self, clock: EpochClock, processes: Processes) -> None:
        """Adds the device time since the last call, of as many processes as there are now, to the run's."""
        now = processes.largest(list(clock.read()))
        elapsed, _, compute = (after - before for after, before in zip(now, self.clock, strict=True))
        self.train_seconds += elapsed * processes.world_size
        self.compute_seconds += compute * processes.world_size
        self.clock = (now[0], now[1], now[2])


def _share(windows: Sequence[Sequence[float]], processes: Processes, length: int) -> list[float]:
    """Of sums by rank this process's; an equal share where the processes are others now, and 0 for what is missing."""
    if len(windows) == processes.world_size:
        own = list(windows[processes.rank])
    else:
        own = [sum(sums) / processes.world_size for sums in zip(*windows, strict=True)]
    return own + [0.0] * (length - len(own))
