"""Optimiser and learning-rate schedule: timm's, driven by the epoch alone."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn


def create_optimizer(
    model: nn.Module,
    name: Literal["adamw", "sgd"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
) -> torch.optim.Optimizer:
    """An optimiser without decay on 1-D parameters, biases, positional embedding and class token (timm's groups).

    There are always two groups, so that a run may be resumed with another decay. AdamW on a GPU is the fused kernel,
    which knows by itself whether a step is left out, so that no step waits for the device. SGD is not: were its first
    step left out, the fused kernel would take momentum from memory that nothing was written to (torch 2.11).
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()  # timm's models name theirs
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)  # with 0.0 timm would make one group
    for group in groups:
        group["weight_decay"] *= weight_decay
    extra: dict[str, Any] = {"betas": betas, "eps": eps} if name == "adamw" else {"momentum": momentum}
    if name == "adamw" and next(model.parameters()).is_cuda:
        extra["fused"] = True
    return create_optimizer_v2(groups, opt=name, lr=lr, **extra)


class EpochSchedule:
    """Cosine learning rate with linear warm-up, one value per epoch (DeiT main.py, timm `CosineLRScheduler`).

    `f(0)` is `warmup_lr`; over the warm-up f rises linearly; then it follows the cosine whose phase counts from epoch
    0. `stepping="released"` trains epoch e at f(e - 1), as DeiT's loop does by stepping at the end of an epoch, so that
    epochs 0 and 1 both train at `warmup_lr`; `"plain"` trains it at f(e). The cosine ends `cooldown_epochs` before the
    run, which stay at `min_lr`. Nothing is kept between epochs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        warmup_epochs: int,
        cooldown_epochs: int,
        warmup_lr: float,
        min_lr: float,
        stepping: Literal["released", "plain"],
    ) -> None:
        self.optimizer = optimizer
        # It warns that a schedule of one epoch has no cosine, which is no news.
        logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
        self.lag = 1 if stepping == "released" else 0
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=epochs - cooldown_epochs,
            lr_min=min_lr,
            warmup_t=warmup_epochs,
            warmup_lr_init=warmup_lr,
        )

    def lr(self, epoch: int) -> float:
        """The learning rate that epoch `epoch` (from 0) trains with."""
        return float(self.scheduler._get_lr(max(epoch - self.lag, 0))[0])

    def apply(self, epoch: int) -> float:
        """Sets the optimiser to the learning rate of `epoch` and returns it."""
        lr = self.lr(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr
