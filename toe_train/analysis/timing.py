"""Times of pieces of code that take turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

WARM_UP = 2  # rounds that do not count


@dataclass(frozen=True)
class Timing:
    """How long something takes.

    Attributes:
        milliseconds: median.
        spread: first and third quartile of that.
        speedup: median over the rounds of what it is compared with / its own time.
        speedup_spread: first and third quartile of that ratio.
    """

    milliseconds: float
    spread: tuple[float, float]
    speedup: float
    speedup_spread: tuple[float, float]


def take_turns(pieces: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Milliseconds of each piece in each of `rounds` rounds, in which the pieces follow one another."""
    taken: list[list[float]] = [[] for _ in pieces]
    for number in range(WARM_UP + rounds):
        for piece, times in zip(pieces, taken, strict=True):
            _wait_for(device)
            begin = time.perf_counter()
            piece()
            _wait_for(device)
            if number >= WARM_UP:
                times.append(1000 * (time.perf_counter() - begin))
    return taken


def timing(times: Sequence[float], compared: Sequence[float]) -> Timing:
    """The times of a piece, beside those of another one in the same rounds."""
    ratios = [other / own for other, own in zip(compared, times, strict=True)]
    return Timing(median(times), _quartiles(times), median(ratios), _quartiles(ratios))


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
