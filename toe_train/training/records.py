"""What the lines of `metrics.jsonl` tell of the training itself; the README describes their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toe_train.recipes import EpochPlan
from toe_train.runs.clock import EpochClock
from toe_train.runs.progress import Losses, Progress


def step_record(
    plan: EpochPlan,
    here: Progress,
    lr: float,
    losses: Losses,
    clock: EpochClock,
    global_batch: int,
    left: float,
    terms: Sequence[str] = (),
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
        terms: names of what the losses are made of.
    """
    rate = here.step / clock.elapsed  # of the whole epoch, an earlier start's part of it included
    return {
        "epoch": plan.epoch,
        "step": here.step - 1,
        "lr": lr,
        "train_loss": mean(losses),
        **means_of_terms(losses, terms),
        "images_per_second": rate * global_batch,
        "data_wait_share": clock.data_wait / clock.elapsed,
        "eta_seconds": left / rate,
    }


def epoch_record(plan: EpochPlan, here: Progress, lr: float, images: int, terms: Sequence[str] = ()) -> dict[str, Any]:
    """After the training of an epoch.

    Args:
        plan: of the epoch.
        here: at its end.
        lr: its mean.
        images: that it trained.
        terms: names of what the losses are made of.
    """
    train_seconds, data_wait, compute = here.clock
    return {
        "epoch": plan.epoch,
        "stage": plan.stage,
        "image_size": plan.image_size,
        "tokens": _mean_count(here.tokens[0], here.tokens[2]),
        "tokens_kept": _mean_count(here.tokens[1], here.tokens[2]),
        "lr": lr,
        "train_loss": mean(here.losses),
        **means_of_terms(here.losses, terms),
        "images_per_second": images / train_seconds,
        "train_seconds": train_seconds,
        "data_wait_seconds": data_wait,
        "compute_seconds": compute,
        "skipped_steps": here.skipped,
        "gpu_hours": here.compute_seconds / 3600,
        "gpu_hours_with_loading": here.train_seconds / 3600,
    }


def counted(losses: Tensor) -> Tensor:
    """Sum and number of the finite losses and sums of their terms, (2 + T,), of (A, 1 + T), on their device."""
    finite = losses[:, 0].isfinite()
    sums = torch.where(finite[:, None], losses, 0.0).sum(0)  # (1 + T,)
    return torch.cat([sums[:1], finite.sum()[None].to(sums.dtype), sums[1:]])


def mean(losses: Losses) -> float | None:
    """Of the finite losses; None where there is none."""
    total, count = losses[:2]
    return total / count if count else None


def means_of_terms(losses: Losses, terms: Sequence[str]) -> dict[str, float | None]:
    """Means of what the finite losses are made of, under "train_<term>"."""
    sums = dict(zip(terms, losses[2:], strict=False))
    return {f"train_{term}": mean((sums.get(term, 0.0), losses[1])) for term in terms}


def _mean_count(total: float, images: float) -> int | float:
    """Tokens of an image; where images differ, a mean."""
    value = total / max(1.0, images)
    return int(value) if value.is_integer() else round(value, 2)
