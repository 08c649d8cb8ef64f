"""Optimiser and learning-rate schedules: functions of the place in the run alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from toe_train.recipes import Clock
from toe_train.training.muon import create_muon


def create_optimizer(
    model: nn.Module,
    name: Literal["adamw", "sgd", "muon"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    layer_decay: float | None = None,
    decaying_whole: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """An optimiser without decay on 1-D parameters, biases, positional embedding and class token (timm's groups).

    There are always both kinds of groups, so that a run may be resumed with another decay. On a GPU it is the fused
    kernel, which knows by itself whether a step is left out, so that no step waits for the device.

    With a `layer_decay` d, layer l of L trains at d^(L - l) of the rate: the head at all of it, the embedding at the
    least (BEiT, arXiv 2106.08254; timm's `param_groups_layer_decay`). Each group holds its factor as `lr_scale`.

    All parameters of the submodules `decaying_whole` decay, biases too; not with a `layer_decay`.

    Raises:
        UserError: neither torch nor timm has Muon, or it finds no weights of blocks.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()  # timm's models name theirs
    if layer_decay is None:
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=spared)  # with 0.0 timm would make one
        heads = {id(parameter) for name in decaying_whole for parameter in model.get_submodule(name).parameters()}
        if heads:
            sparing, decaying = groups
            decaying["params"] += [parameter for parameter in sparing["params"] if id(parameter) in heads]
            sparing["params"] = [parameter for parameter in sparing["params"] if id(parameter) not in heads]
    else:
        groups = param_groups_layer_decay(model, 1.0, no_weight_decay_list=spared, layer_decay=layer_decay)
    for group in groups:
        group["weight_decay"] *= weight_decay
    extra: dict[str, Any] = {"momentum": momentum} if name == "sgd" else {"betas": betas, "eps": eps}
    if next(model.parameters()).is_cuda:
        extra["fused"] = True
    if name == "muon":
        return create_muon(model, groups, lr, momentum, **extra)
    optimizer = create_optimizer_v2(groups, opt=name, lr=lr, **extra)
    if name == "sgd":
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gives SGD a momentum of 0 where it has none yet, from which its first step is the same as from none.

    Without one, and with the first step left out, the fused kernel would go on from memory that nothing was written to
    (torch 2.11 to 2.14).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes up the moments of a state_dict; the options stay the optimiser's own.

    They are its own while the state is read, too: torch leaves the count of steps on the CPU, or takes it to the
    parameters, by the options that come with the state, and those of a run on a CPU do not know the fused kernel.
    """
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    groups = [{**group, **own} for group, own in zip(state["param_groups"], options, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


class Schedule(Protocol):
    """A learning rate for each optimiser step."""

    def lr(self, epoch: int, step: int) -> float:
        """The learning rate of step `step` of `epoch`, both from 0."""
        ...

    def mean(self, epoch: int) -> float:
        """The mean over the steps of `epoch`."""
        ...


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives all parameters the learning rate `lr`, each group its own share of it where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


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

    def lr(self, epoch: int, step: int = 0) -> float:
        """The learning rate that epoch `epoch` (from 0) trains with, in all its steps."""
        return float(self.scheduler._get_lr(max(epoch - self.lag, 0))[0])

    def mean(self, epoch: int) -> float:
        """The same."""
        return self.lr(epoch)


class StepSchedule:
    """Linear warm-up and cosine with a value for each step (EfficientTrain utils.py `cosine_scheduler`).

    The warm-up's n steps go from `warmup_lr` to `peak_lr`, both included; step i of the m after it is at
    min_lr + (peak_lr - min_lr) (1 + cos(pi i / m)) / 2, so that min_lr itself is never reached. `clocks` says for each
    epoch of the run where in such a schedule it stands.
    """

    def __init__(
        self, clocks: Sequence[Clock], steps_per_epoch: int, peak_lr: float, warmup_lr: float, min_lr: float
    ) -> None:
        self.clocks = clocks
        self.steps_per_epoch = steps_per_epoch
        self.peak_lr, self.warmup_lr, self.min_lr = peak_lr, warmup_lr, min_lr

    def lr(self, epoch: int, step: int) -> float:
        """The learning rate of step `step` of `epoch`, both from 0."""
        clock = self.clocks[epoch]
        done, total, warmup = (epochs * self.steps_per_epoch for epochs in (clock.done, clock.total, clock.warmup))
        done += step
        if done < warmup:
            return self.warmup_lr + (self.peak_lr - self.warmup_lr) * done / max(1, warmup - 1)
        phase = math.pi * (done - warmup) / (total - warmup)
        return self.min_lr + 0.5 * (self.peak_lr - self.min_lr) * (1 + math.cos(phase))

    def mean(self, epoch: int) -> float:
        """The mean over the steps of `epoch`."""
        return math.fsum(self.lr(epoch, step) for step in range(self.steps_per_epoch)) / self.steps_per_epoch
