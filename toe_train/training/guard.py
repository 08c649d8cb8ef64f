"""Numbers that are not finite: noticed on the device in every step, judged when the run looks, reported in full.

Shapes: R rows of the last steps, P parameters with a gradient, A micro-batches of a step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_SHOWN = 5


class NotFinite(Exception):
    """Training cannot go on from here: the message says what is not finite, and since when.

    Attributes:
        epoch: of the first step that went wrong.
        step: that step; None where it is not known.
    """

    def __init__(self, message: str, epoch: int, step: int | None) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


@dataclass(frozen=True)
class Counts:
    """Steps that were left out because their gradients are not finite: in a row now, in a row at most, in the epoch."""

    running: int
    longest: int
    total: int


class StepGuard:
    """Keeps the gradient norms and losses of the last steps on the device, and counts the steps that were left out.

    The gradients are those after the processes have averaged them, so that all processes count alike. `note` does
    not wait for the device; what asks for something does.
    """

    def __init__(self, model: nn.Module, accumulation: int, rows: int, device: torch.device) -> None:
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._accumulation = accumulation
        self._rows = rows
        self._device = device
        self._places: deque[tuple[int, int]] = deque(maxlen=rows)  # epoch and step of the rows, oldest first
        self._norms = torch.zeros(rows, len(self._named), device=device)  # (R, P)
        self._losses = torch.zeros(rows, accumulation, device=device)  # (R, A)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._next = 0

    def begin_epoch(self, total: int) -> None:
        """Counts on from `total`; a row of bad steps may go on from the epoch before."""
        self._counts = torch.stack([self._counts[0], self._counts[0], self._counts.new_tensor(total)])

    def forget(self) -> None:
        """The steps so far did not happen."""
        self._places.clear()
        self._counts = torch.zeros_like(self._counts)

    def note(self, epoch: int, step: int, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Takes up a step between its backward pass and its optimiser step.

        Args:
            epoch: from 0.
            step: in the epoch, from 0.
            losses: (A,) of this process's micro-batches.

        Returns:
            The norm of all gradients together, a scalar; and whether one of them is not finite, a bool.
        """
        # A parameter that the forward pass does not use has no gradient.
        gradients = [p.grad if p.grad is not None else p.new_zeros(()) for _, p in self._named]
        # In float64 a norm is finite if and only if its elements are, which is what the scaler goes by.
        norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float64))  # (P,)
        bad = (~norms.isfinite().all()).long()
        running, longest, total = self._counts.unbind()
        running = (running + 1) * bad
        self._counts = torch.stack([running, torch.maximum(longest, running), total + bad])
        row = self._next % self._rows
        self._norms[row].copy_(norms)
        self._losses[row].copy_(losses)
        self._places.append((epoch, step))
        self._next += 1
        return norms.norm().float(), bad.bool()

    def counts(self) -> Counts:
        """Waits for the device."""
        return Counts(*self._counts.tolist())

    def first_of_longest(self) -> tuple[int, int]:
        """Epoch and step at which the longest row of bad steps began, as far as it is remembered."""
        places, norms, _ = self._remembered()
        best, since = (0, 0), None
        for index, finite in enumerate(norms.isfinite().all(1).tolist()):
            if finite:
                since = None
                continue
            since = index if since is None else since
            best = max(best, (index - since + 1, -since))
        return places[-best[1]]

    def first_bad(self, since: tuple[int, int]) -> tuple[int, int] | None:
        """Epoch and step of the first remembered step, from this one on, whose gradients are not finite."""
        places, norms, _ = self._remembered()
        steps = zip(places, norms.isfinite().all(1).tolist(), strict=True)
        return next((place for place, finite in steps if place >= since and not finite), None)

    def largest_gradients(self, epoch: int, step: int | None) -> list[tuple[str, float]]:
        """Parameters and norms of a remembered step's largest gradients, those that are not finite first."""
        places, norms, _ = self._remembered()
        if step is None or (epoch, step) not in places:
            return []
        row = norms[places.index((epoch, step))]
        order = row.nan_to_num(nan=torch.inf).argsort(descending=True, stable=True)[:LARGEST_SHOWN].tolist()
        return [(self._named[index][0], float(row[index])) for index in order]

    def before(self, epoch: int, step: int | None) -> tuple[int, int] | None:
        """The last remembered step before this one whose gradients were finite."""
        if step is None:
            return None
        places, norms, _ = self._remembered()
        earlier = zip(places, norms.isfinite().all(1).tolist(), strict=True)
        return max((place for place, finite in earlier if finite and place < (epoch, step)), default=None)

    def micro_batches_not_finite(self, epoch: int, step: int | None) -> list[int]:
        """Which of this process's micro-batches of a remembered step had a loss that is not finite."""
        places, _, losses = self._remembered()
        if step is None or (epoch, step) not in places:
            return []
        finite = losses[places.index((epoch, step))].isfinite().tolist()
        return [micro for micro in range(self._accumulation) if not finite[micro]]

    def _remembered(self) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """Places, norms (r, P) and losses (r, A) of the remembered steps, oldest first."""
        count = len(self._places)
        rows = [(self._next - count + index) % self._rows for index in range(count)]
        return list(self._places), self._norms[rows].cpu(), self._losses[rows].cpu()


@torch.no_grad()
def not_finite(state: dict[str, Any]) -> list[str]:
    """Names of the floating-point tensors of a state_dict that hold a number that is not finite; waits once."""
    named = [(name, value) for name, value in state.items() if torch.is_tensor(value) and value.is_floating_point()]
    finite = torch.stack([value.isfinite().all() for _, value in named]).tolist()
    return [name for (name, _), healthy in zip(named, finite, strict=True) if not healthy]
