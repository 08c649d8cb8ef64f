"""A configuration's training step: optimiser, schedule, precision, guard; and the micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from timm.utils import ModelEmaV3
from torch import nn

from toe_train import data
from toe_train.build.frozen import freeze_body
from toe_train.build.inputs import batch_layout, build_finish, example_batch, largest_size
from toe_train.build.model import BuiltModel, build_model
from toe_train.build.task import build_task
from toe_train.errors import UserError
from toe_train.recipes import (
    CurriculumStage,
    EpochPlan,
    RunConfig,
    Size,
    config_at,
    curriculum_stages,
    plan_epochs,
    sides_of,
)
from toe_train.runs.clock import EpochClock
from toe_train.runs.memory import largest_that_fits
from toe_train.runs.polling import MOST_STEPS
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task
from toe_train.training.compiling import compile_stages
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.draws import ForwardDraws
from toe_train.training.guard import StepGuard
from toe_train.training.optim import EpochSchedule, Schedule, StepSchedule, create_optimizer
from toe_train.training.precision import autocast_on, scaler_on
from toe_train.training.step import TrainStep

BOX_HEADS = ("class_embed", "bbox_embed")  # whose biases decay too, as YOLOS trains them
MicroBatches = Mapping[CurriculumStage, int]


def build_step(
    config: RunConfig,
    built: BuiltModel,
    task: Task,
    layout: data.BatchLayout,
    processes: Processes,
    image_size: Size | None = None,
    frozen: bool = False,
) -> TrainStep:
    """The step of one process; `built.model` is where it trains already, and made for `image_size` as there.

    frozen: the head alone trains. The optimiser knows all parameters, as it does afterwards.

    Raises:
        UserError: the optimiser does not go with the model, or it has no head that could train alone.
    """
    model, device, section = built.model, processes.device, config.train
    optimizer = build_optimizer(config, model)
    still = freeze_body(model, config.model.name) if frozen else []
    return TrainStep(
        processes=processes,
        model=model,
        sides=sides_of(image_size or config.model.image_size),
        task=task,
        method=built.method,
        optimizer=optimizer,
        scaler=scaler_on(device, section.precision),
        autocast=autocast_on(device, section.precision),
        clip_grad=config.optim.clip_grad,
        ema=_average(section.ema_decay, section.ema_warmup, model),
        layout=layout,
        draws=ForwardDraws(config.seed, layout, processes.rank, built.draws, built.method, device),
        # Enough rows to remember where a row of bad steps began when the processes look.
        guard=StepGuard(model, layout.accumulation, section.max_skipped_steps + MOST_STEPS + 2, device),
        still=still,
    )


def _average(decay: float | None, warmup: bool, model: nn.Module) -> ModelEmaV3 | None:
    return None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=warmup)


def choose_convolutions(model: nn.Module) -> None:
    """Lets cuDNN try its algorithms where a stem has convolutions that overlap (LV-ViT); image sizes stay the same.

    A plain patch embedding is one matrix product, for which trying would only cost time.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    torch.backends.cudnn.benchmark = any(module.kernel_size != module.stride for module in convolutions)


def build_compile(
    config: RunConfig, step: TrainStep, loaded_size: Size, stages: Sequence[int], whole: bool = False
) -> Callable[[], str | None] | None:
    """What compiles the step for stages of its method, see `compile_stages`; None where it is not to be compiled."""
    many_sizes = config.task_kind == "detection"  # each would make graphs of its own
    on_its_own = step.processes.device.type == "cuda" and not many_sizes
    wanted = on_its_own if config.train.compile is None else config.train.compile
    if not wanted:
        return None

    def compile_now() -> str | None:
        loaded = [example_batch(config, step.task, step.layout.micro_batch, loaded_size)]
        (example,) = DeviceBatches(loaded, step.processes.device, build_finish(config, step.sides[0]))
        return compile_stages(step, stages, example, whole)

    return compile_now


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of the `optim` section, at the peak learning rate."""
    section = config.optim
    if section.layer_decay is not None and not hasattr(model, "group_matcher"):
        raise UserError(
            f"optim.layer_decay = {section.layer_decay}: {type(model).__name__} does not say which parameters make a "
            "layer (it has no group_matcher); set it to null"
        )
    heads = BOX_HEADS if config.task_kind == "detection" and config.detection.head_bias_decay else ()
    return create_optimizer(
        model,
        lr=config.peak_lr,
        decaying_whole=heads,
        **section.model_dump(exclude={"lr", "lr_base_batch", "clip_grad"}),
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
    stage of the method with the most tokens: the optimiser's moments are there in the second, and gradients are there
    in the forward pass where a run has them so.

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
        group = now * accumulation if config.mixes_images else 1
        tried = data.BatchLayout(now * accumulation, group, 1, accumulation, config.mixes_images)
        built = build_model(config, num_classes, plan.image_size)
        built.model.to(processes.device).train()
        stages = {epoch.stage for epoch in plan_epochs(config) if epoch.image_size == plan.image_size}
        built.method.stage = max(stages, key=lambda stage: built.method.tokens_kept(built.num_tokens, stage))
        task = build_task(config, built, num_classes, tried)
        step = build_step(config, built, task, tried, alone, plan.image_size, plan.frozen)
        clock = EpochClock(processes.device)
        loaded = [example_batch(config, task, now, largest_size(config, plan.loaded_size, now))] * 2 * accumulation
        batches = iter(DeviceBatches(loaded, processes.device, build_finish(config, plan.image_size)))
        for number in range(2):
            step(batches, clock, 0, number)

    fitting = largest_that_fits(attempt, layout.micro_batch, processes, data.smallest_micro_batch(config.mixes_images))
    return batch_layout(config, processes.world_size, fitting).micro_batch
