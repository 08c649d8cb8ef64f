"""Times of pieces of code that take turns, so that what slows the machine down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from toe_train.recipes import RunConfig
from toe_train.training.precision import Precision

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
            wait_for(device)
            begin = time.perf_counter()
            piece()
            wait_for(device)
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


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def baseline_epochs(config: RunConfig) -> int:
    """The full-token epochs that a run's speed-up is over: as many as it has, or those that its curriculum names."""
    return (config.curriculum and config.curriculum.baseline_epochs) or config.epochs


def schedule_speedup(full: float, baseline_epochs: int, parts: Iterable[tuple[int, float]]) -> float:
    """The cost of `baseline_epochs` epochs with a step of `full` each, over that of a schedule's (epochs, step)."""
    return full * baseline_epochs / sum(epochs * cost for epochs, cost in parts)


def measured_speedup(baseline_epochs: int, parts: Iterable[tuple[int, Timing]]) -> float:
    """The same of a schedule's (epochs, times): by each step's ratio to the full one, which leaves noise out best."""
    return schedule_speedup(1.0, baseline_epochs, [(epochs, 1 / step.speedup) for epochs, step in parts])


def matmul_rate(device: torch.device, precision: Precision) -> float:
    """Floating-point operations per second of large square matrix products, the median of ten: what a device can do."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    (times,) = take_turns([lambda: left @ right], 10, device)
    return 2 * side**3 / (median(times) / 1000)


def peak_memory(piece: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that tensors take on the device while `piece` runs; None on a CPU, which does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    piece()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
