"""What the lines of `metrics.jsonl` tell of the training itself; the README describes their keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toe_train.recipes import EpochPlan
from toe_train.runs.clock import EpochClock
from toe_train.runs.progress import Losses, Progress


def step_record(
    plan: EpochPlan, here: Progress, lr: float, losses: Losses, clock: EpochClock, global_batch: int, left: float
) -> dict[str, Any]:
    """After a step.

    Args:
        plan: of its epoch.
        here: after it.
        lr: that it took.
        losses: since the last line, over all processes.
        clock: of the epoch.
        global_batch: images of a step.
        left: steps to the end of the run, each as long as one of this epoch.
    """
    rate = here.step / clock.elapsed  # of the whole epoch, an earlier start's part of it included
    return {
        "epoch": plan.epoch,
        "step": here.step - 1,
        "lr": lr,
        "train_loss": mean(losses),
        "images_per_second": rate * global_batch,
        "data_wait_share": clock.data_wait / clock.elapsed,
        "eta_seconds": left / rate,
    }


def epoch_record(plan: EpochPlan, here: Progress, lr: float, images: int, tokens: tuple[int, int]) -> dict[str, Any]:
    """After the training of an epoch.

    Args:
        plan: of the epoch.
        here: at its end.
        lr: its mean.
        images: that it trained.
        tokens: patch tokens N, and kept of them.
    """
    train_seconds, data_wait, compute = here.clock
    return {
        "epoch": plan.epoch,
        "stage": plan.stage,
        "image_size": plan.image_size,
        "tokens": tokens[0],
        "tokens_kept": tokens[1],
        "lr": lr,
        "train_loss": mean(here.losses),
        "images_per_second": images / train_seconds,
        "train_seconds": train_seconds,
        "data_wait_seconds": data_wait,
        "compute_seconds": compute,
        "skipped_steps": here.skipped,
        "gpu_hours": here.compute_seconds / 3600,
        "gpu_hours_with_loading": here.train_seconds / 3600,
    }


def counted(losses: Tensor) -> Tensor:
    """Sum and number of the finite losses, (2,), on their device."""
    return torch.stack([losses.nan_to_num(0.0, 0.0, 0.0).sum(), losses.isfinite().sum()])


def mean(losses: Losses) -> float | None:
    """Of the finite losses; None where there is none."""
    total, count = losses
    return total / count if count else None
