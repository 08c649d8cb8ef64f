"""A configuration's training step: loss, optimiser, schedule, precision, guard; and the micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from toe_train import data, models
from toe_train.errors import UserError
from toe_train.expansion import kept_mask
from toe_train.recipes import EpochPlan, RunConfig, config_at, curriculum_stages, plan_epochs
from toe_train.training.build_inputs import batch_layout, build_finish, build_mixing, example_batch
from toe_train.training.build_model import BuiltModel, build_model
from toe_train.training.clock import EpochClock
from toe_train.training.compiling import compile_stages
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.distributed import Processes
from toe_train.training.draws import ForwardDraws
from toe_train.training.losses import ClassificationLoss, TokenLabelLoss
from toe_train.training.memory import largest_that_fits
from toe_train.training.optim import EpochSchedule, Schedule, StepSchedule, create_optimizer
from toe_train.training.polling import MOST_STEPS
from toe_train.training.precision import autocast_on, scaler_on
from toe_train.training.stability import StepGuard
from toe_train.training.step import TrainStep

MicroBatches = Mapping[tuple[Any, ...], int]  # by `EpochPlan.curriculum`


def build_step(
    config: RunConfig,
    built: BuiltModel,
    num_classes: int,
    layout: data.BatchLayout,
    processes: Processes,
    image_size: int | None = None,
) -> TrainStep:
    """The step of one process; `built.model` is where it trains already, and made for `image_size` as there.

    Raises:
        UserError: model and token labels do not go together.
    """
    model, device, section = built.model, processes.device, config.train
    return TrainStep(
        processes=processes,
        model=model,
        image_size=image_size or config.model.image_size,
        loss=build_loss(config, built),
        optimizer=build_optimizer(config, model),
        scaler=scaler_on(device, section.precision),
        autocast=autocast_on(device, section.precision),
        clip_grad=config.optim.clip_grad,
        ema=ModelEmaV3(model, decay=section.ema_decay) if section.ema_decay is not None else None,
        layout=layout,
        mixing=build_mixing(config, built, num_classes, layout),
        draws=ForwardDraws(
            config.seed, layout, processes.rank, built.drop_path, built.expansion, built.num_tokens, device
        ),
        # Enough rows to remember where a row of bad steps began when the processes look.
        guard=StepGuard(model, layout.accumulation, section.max_skipped_steps + MOST_STEPS + 2, device),
    )


def build_compile(
    config: RunConfig, built: BuiltModel, step: TrainStep, loaded_size: int, stages: Sequence[int]
) -> Callable[[], str | None] | None:
    """What compiles the step for stages of ToE, see `compile_stages`; None where the run is not to be compiled."""
    wanted = step.processes.device.type == "cuda" if config.train.compile is None else config.train.compile
    if not wanted:
        return None

    def compile_now() -> str | None:
        loaded = [example_batch(config, step.layout.micro_batch, loaded_size)]
        (example,) = DeviceBatches(loaded, step.processes.device, build_finish(config, step.image_size))
        return compile_stages(step, built.expansion, stages, example)

    return compile_now


def build_loss(config: RunConfig, built: BuiltModel) -> nn.Module:
    """The loss that fits what the model gives out in training.

    Raises:
        UserError: token labels for a model without an output for each patch, or such a model without token labels.
    """
    section, name = config.token_labels, config.model.name
    if section is None and not built.is_dense:
        return ClassificationLoss()
    if section is None:
        raise UserError(
            f"model.name = {name}: has an output for each patch, which token_labels train, and the run has none; set "
            "token_labels.root, or model.kwargs.dense=false to train the class head alone"
        )
    if not built.is_dense:
        raise UserError(
            f"model.name = {name}: has no output for each patch, which token_labels train; use lvvit_t, lvvit_s or "
            "lvvit_m (without model.kwargs.dense=false), or token_labels=null"
        )
    if config.expansion is None or config.expansion.restore != "ignore":
        return TokenLabelLoss(section.dense_weight, section.cls_weight)
    model: Any = built.model
    expansion: Any = built.expansion

    def counted() -> Tensor | None:
        if expansion.kept is None:
            return None
        # The tokens were chosen among mixed ones, and the outputs are each image's own again.
        return models.swap_in_boxes(kept_mask(expansion.kept, built.num_tokens), model.last_mix, built.grid)

    return TokenLabelLoss(section.dense_weight, section.cls_weight, counted)


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of the `optim` section, at the peak learning rate."""
    section = config.optim
    return create_optimizer(
        model, section.name, config.peak_lr, section.weight_decay, section.betas, section.eps, section.momentum
    )


def build_schedule(config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Schedule:
    """Learning rates of the `schedule` section."""
    section = config.schedule
    if section.unit == "step":
        clocks = [plan.clock for plan in plan_epochs(config)]
        return StepSchedule(clocks, steps_per_epoch, config.peak_lr, section.warmup_lr, section.min_lr)
    return EpochSchedule(optimizer, config.epochs, **section.model_dump(exclude={"unit"}))


def micro_batches(config: RunConfig, num_classes: int, processes: Processes, left: int | None) -> MicroBatches:
    """The micro-batches that the device holds, for each stage of the curriculum, as far as that is known beforehand.

    Args:
        config: the run.
        num_classes: width of the classifier.
        processes: that must agree.
        left: what an earlier start of the run left when it ran out of memory.
    """
    found = {}
    for plan in curriculum_stages(plan_epochs(config)):
        now = config_at(config, plan)
        if processes.device.type == "cuda":
            found[plan.curriculum] = fit_to_memory(now, num_classes, processes, left, plan)
        else:
            found[plan.curriculum] = batch_layout(now, processes.world_size, left).micro_batch
    return found


def fit_to_memory(
    config: RunConfig, num_classes: int, processes: Processes, largest: int | None = None, plan: EpochPlan | None = None
) -> int:
    """The largest micro-batch, of `largest` images at most, of which every process's device holds a step.

    What is tried are two steps of the model for the curriculum's stage of `plan` as it is without torch.compile, at the
    stage of ToE with the most tokens: the optimiser's moments are there in the second, and gradients are there in the
    forward pass where a run has them so.

    Raises:
        UserError: the model cannot be built.
        RunFailed: not even the smallest micro-batch fits.
    """
    layout = batch_layout(config, processes.world_size, largest)
    alone = Processes(0, 1, processes.device)
    plan = plan or plan_epochs(config)[0]
    holds_gradients = layout.accumulation > 1 or processes.world_size > 1  # DDP's buckets stay

    def attempt(micro_batch: int) -> None:
        now = batch_layout(config, processes.world_size, micro_batch).micro_batch
        accumulation = 2 if holds_gradients or now < layout.micro_batch else 1
        tried = data.BatchLayout(now * accumulation, now * accumulation, 1, accumulation)
        built = build_model(config, num_classes, plan.image_size)
        built.model.to(processes.device).train()
        if built.expansion is not None:
            stages = {epoch.stage for epoch in plan_epochs(config) if epoch.image_size == plan.image_size}
            built.expansion.stage = max(stages, key=partial(built.expansion.num_kept, built.num_tokens))
        step = build_step(config, built, num_classes, tried, alone, plan.image_size)
        clock = EpochClock(processes.device)
        loaded = [example_batch(config, now, plan.loaded_size)] * 2 * accumulation
        batches = iter(DeviceBatches(loaded, processes.device, build_finish(config, plan.image_size)))
        for number in range(2):
            step(batches, clock, 0, number)

    fitting = largest_that_fits(attempt, layout.micro_batch, processes)
    return batch_layout(config, processes.world_size, fitting).micro_batch
