"""What the steps since the last line of the log gave, over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toe_train.runs.processes import Processes
from toe_train.runs.progress import Progress
from toe_train.training.records import counted


class Window:
    """Sums by images, as a run may go on in other micro-batches: of losses and their terms, and of tokens.

    Losses stay on the device, which is not waited for; tokens are counted on the host.

    Args:
        here: the progress, in which a checkpoint may have left a window.
        processes: that train together.
        terms: number of the terms of a loss.
    """

    def __init__(self, here: Progress, processes: Processes, terms: int) -> None:
        losses, self._tokens = here.own_window(processes, terms)
        self._processes = processes
        self._losses = torch.tensor(losses, device=processes.device)

    def add(self, losses: Tensor, tokens: Sequence[tuple[int, int]], images: int) -> None:
        """Takes up a step: (A, 1 + T) losses, patch tokens and those kept of each micro-batch's image, its images."""
        self._losses += images * counted(losses)
        for number, kept in tokens:
            for place, count in enumerate((number, kept, 1)):
                self._tokens[place] += images * count

    def take(self, here: Progress) -> tuple[float, ...]:
        """Sums of losses over the processes, which `here` takes up with the tokens as logged; it is empty then."""
        losses = self._processes.sum(self._losses.clone()).tolist()
        tokens = torch.tensor(self._tokens, dtype=torch.float64, device=self._processes.device)
        here.add(losses, self._processes.sum(tokens).tolist())
        here.logged = here.step
        self._losses.zero_()
        self._tokens = [0.0, 0.0, 0.0]
        return tuple(losses)

    def keep(self, here: Progress) -> None:
        """Leaves the window in `here`, for a checkpoint."""
        here.window = self._processes.gather(tuple(self._losses.tolist()))
        here.token_window = self._processes.gather(tuple(self._tokens))
