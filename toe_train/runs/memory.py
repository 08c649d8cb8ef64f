"""Running out of device memory: found before the first epoch, remembered after, answered by smaller micro-batches.

Micro-batches are accumulated to the same global batch, with the same draws, so a smaller one gives the same gradients
but for what is averaged within a micro-batch: a batch norm's statistics (LV-ViT), and detection's class loss.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from toe_train.errors import Interrupted, RunFailed
from toe_train.runs.processes import Processes


def largest_that_fits(attempt: Callable[[int], None], micro_batch: int, processes: Processes, smallest: int = 1) -> int:
    """Halves the micro-batch until a step fits in every process.

    Args:
        attempt: takes a step with micro-batches of at most so many images; it must not communicate.
        micro_batch: to begin with.
        processes: that must agree.
        smallest: micro-batch that the run may have.

    Raises:
        RunFailed: not even the smallest one fits.
    """
    while not _fits(attempt, micro_batch, processes):
        micro_batch = halved(micro_batch, smallest)
    return micro_batch


def halved(micro_batch: int, smallest: int = 1) -> int:
    """The next smaller one, of `smallest` images at least.

    Raises:
        RunFailed: there is none.
    """
    if micro_batch // 2 < smallest:
        images = "1 image" if micro_batch == 1 else f"{micro_batch} images"
        raise RunFailed(
            f"the device's memory does not hold a step of {images} with all tokens; use a smaller model or "
            "image, train.precision=fp16 or bf16, or a device with more memory"
        )
    return micro_batch // 2


class StepTooLarge(Exception):
    """The device's memory did not hold a step in the middle of a run; the message is the device's."""


class RanOut(Interrupted):
    """As `StepTooLarge`, with later starts told to take smaller micro-batches."""


def ran_out(path: Path, micro_batch: int, error: StepTooLarge, alone: bool, smallest: int = 1) -> RanOut:
    """Halves the micro-batch for all later starts of a run, and says so.

    Args:
        path: the run's file for it.
        micro_batch: that did not fit.
        error: the device's.
        alone: whether the run has one process, which goes on by itself.
        smallest: micro-batch that the run may have.

    Raises:
        RunFailed: it has that already, or the file cannot be written.
    """
    smaller = halved(micro_batch, smallest)
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(f"{smaller}\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as fault:
        raise RunFailed(
            f"out of device memory, and {fault}; start again with train.max_micro_batch={smaller}"
        ) from None
    return RanOut(
        f"out of device memory ({str(error).split('. ')[0]}); from the last checkpoint on the run takes micro-batches "
        f"of {smaller} images instead of {micro_batch} ({path} keeps it; the gradients stay the same, but for what is "
        "averaged within a micro-batch: a batch norm's statistics, and detection's class loss)",
        then="" if alone else "start {command} again, or let torchrun do so with --max-restarts",
    )


def remembered(path: Path, smallest: int = 1) -> int | None:
    """The micro-batch that a start of the run left after it ran out of memory; None where none is to be read.

    smallest: that the run may have; it may have been another one's then.
    """
    try:
        return max(smallest, int(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def release() -> None:
    """Gives what a failed step held back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Measures `peak_memory` from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device since `reset_peak_memory`, or of this process since it started on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _fits(attempt: Callable[[int], None], micro_batch: int, processes: Processes) -> bool:
    fits = True
    try:
        attempt(micro_batch)
    except torch.OutOfMemoryError:
        fits = False
    release()
    return processes.max(not fits) == 0
