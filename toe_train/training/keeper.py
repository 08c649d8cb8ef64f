"""A trainer's state as files: written by the main process, read by it for all of them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from toe_train.errors import RunFailed
from toe_train.runs.checkpoints import Checkpoints, read
from toe_train.runs.processes import Processes


@dataclass
class Keeper:
    """Saves and reads, and knows when it last did.

    Attributes:
        checkpoints: of the run.
        belongs_to: what the state belongs to (config, classes, images, versions, jobs): stored with every checkpoint.
        processes: that share the state.
        saved: whether `last.pt` holds just the trainer's state.
        saved_at: when it was last written, by `time.monotonic`.
        seconds: that saving took since `take_seconds`.
    """

    checkpoints: Checkpoints
    belongs_to: dict[str, Any]
    processes: Processes
    saved: bool
    saved_at: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def save(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Writes a checkpoint; all processes call it together."""
        begin = time.monotonic()
        self.processes.main_only(lambda: self.checkpoints.save({**state, **self.belongs_to}, is_best))
        self.saved, self.saved_at = True, time.monotonic()
        self.seconds += self.saved_at - begin

    def newest(self) -> dict[str, Any]:
        """The newest healthy checkpoint, read by the main process and handed to the others."""

        def found() -> dict[str, Any]:
            self.checkpoints.heal()
            return read(self.checkpoints.last)

        return self.processes.from_main(found)

    def take_seconds(self) -> float:
        """Those that saving took since the last call."""
        taken, self.seconds = self.seconds, 0.0
        return taken


def require_same_everywhere(tensors: dict[str, Tensor], processes: Processes) -> None:
    """Ends a run whose processes do not hold the same numbers; all call it together.

    Raises:
        RunFailed: in all processes, naming the ranks that differ from the main one.
    """
    if processes.world_size == 1:
        return
    digests = processes.gather(digest(tensors))
    if others := [rank for rank, found in enumerate(digests) if found != digests[0]]:
        failure = RunFailed(
            f"the processes do not hold the same weights, averages and moments: rank {', '.join(map(str, others))} "
            "differs from rank 0, which read them for all; nothing was trained with them. Memory or a connection is "
            "damaged, or a device computes wrong",
            then="start {command} again, without that machine if it comes back",
        )
        failure.shared = True
        raise failure


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors' names and bytes."""
    summed = hashlib.sha256()
    for name, value in tensors.items():
        summed.update(name.encode())
        summed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return summed.hexdigest()
