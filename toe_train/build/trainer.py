"""A Trainer of all parts, for the stage of the curriculum at which a run stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from toe_train import data
from toe_train.build.classes import class_notes, class_weights
from toe_train.build.inputs import Images, batch_layout, build_inputs, build_skipped, loads_pairs
from toe_train.build.model import BuiltModel, build_model, load_initial
from toe_train.build.pictures import build_pictures
from toe_train.build.resume import Found, best_metric_before, changes, does_not_fit, kept_aside
from toe_train.build.step import MicroBatches, build_compile, build_schedule, build_step, choose_convolutions
from toe_train.build.task import build_task
from toe_train.build.tracking import Tracking
from toe_train.errors import UserError, host_memory
from toe_train.recipes import EpochPlan, RunConfig, config_at, dump_config, plan_epochs, side_of
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.console import Console
from toe_train.runs.curves import groups_of
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import JsonLines, RunLog, Several, read_metrics, tell_broken
from toe_train.runs.processes import Processes
from toe_train.runs.progress import Progress
from toe_train.runs.tensorboard import TensorBoard
from toe_train.tasks.task import Task
from toe_train.training.cadence import Cadence
from toe_train.training.evaluation import Evaluation
from toe_train.training.inputs import Inputs
from toe_train.training.keeper import Keeper
from toe_train.training.loop import Trainer
from toe_train.training.recovery import Limits, Recovery
from toe_train.training.resolution import BothSizes
from toe_train.training.step import TrainStep

# Sections that TensorBoard does not compare runs by: they say where a run reads and writes.
NOT_COMPARED = ("data", "checkpoint", "log", "allow")


@dataclass(frozen=True)
class Setting:
    """What all trainers of a run share.

    Attributes:
        config: the run.
        folder: where it lives.
        processes: that train it.
        images: train and val.
        belongs_to: what its checkpoints belong to.
        limits: micro-batches that the device holds; None for those of the configuration.
        tracking: trackers that are told beside the run folder.
    """

    config: RunConfig
    folder: RunFolder
    processes: Processes
    images: Images
    belongs_to: dict[str, Any]
    limits: MicroBatches | None = None
    tracking: Tracking = field(default_factory=Tracking)


def build_trainer(run: Setting, found: Found | None) -> Trainer:
    """All parts of a run, at its beginning, or where the checkpoint `found` left it.

    A curriculum has a trainer for each of its stages: this one is for the epoch at which the run stands. It does not
    communicate, so that a fault in one process can be told to the others (`Processes.together`).

    Raises:
        UserError: for everything that cannot work, before anything is trained or overwritten.
    """
    config, processes = run.config, run.processes
    progress = Progress(**found[1]["progress"]) if found else Progress()
    plans = plan_epochs(config)
    plan = plans[progress.epoch]
    now = config_at(config, plan)
    train_images, _ = run.images

    layout = batch_layout(now, processes.world_size, run.limits[plan.curriculum] if run.limits else None)
    built = build_model(now, len(train_images.classes), plan.image_size)
    # The others take the main process's over, see `Trainer.fit`.
    started_from = None
    if found is None and processes.is_main:
        started_from = load_initial(config, built, train_images.classes)
    built.model.to(processes.device)
    choose_convolutions(built.model)

    def average(values: Tensor) -> Tensor:
        return processes.sum(values) / processes.world_size

    weights = class_weights(config, train_images)
    task = build_task(now, built, len(train_images.classes), layout, average, weights)
    order = task.order(train_images, layout.global_batch, config.seed, config.augment.repeats, config.data.sampling)
    built.method.join(average, config.epochs * order.steps_per_epoch)
    step = build_step(now, built, task, layout, processes, plan.image_size, plan.frozen)
    step.steps_per_epoch = order.steps_per_epoch if config.train.ema_warmup else None
    stages = {other.stage: None for other in plans[plan.epoch :] if other.curriculum == plan.curriculum}
    step.compile = build_compile(now, step, plan.loaded_size, list(stages))
    skipped = build_skipped(config, run.folder.skipped, processes.rank)
    inputs = build_inputs(now, plan, task, run.images, layout, order, processes, skipped, built.num_tokens)
    checkpoints = Checkpoints(run.folder.checkpoints)
    limits = Limits(
        config.train.max_skipped_steps, config.train.max_rollbacks, run.folder.not_finite, order, train_images.describe
    )
    trainer = Trainer(
        step=step,
        inputs=inputs,
        cadence=_cadence(config, plans, plan, step, order),
        progress=progress,
        evaluation=_evaluation(now, plan, built, task, inputs, step),
        keeper=Keeper(
            checkpoints,
            run.belongs_to,
            processes,
            saved=found is not None
            and best_metric_before(found) == config.checkpoint.best_metric  # else its best no longer counts
            and found[0].resolve() == checkpoints.last.resolve(),
        ),
        recovery=Recovery(step, limits, (progress.epoch, progress.step)),
        pictures=build_pictures(now, plans, plan, built, task, run.images, skipped, processes),
        log=RunLog(),
    )
    if found is not None:
        _go_on(trainer, found)
    # Last of all, since it drops the metric lines of what came later.
    notes = _begin_notes(config, plan, built, started_from) + class_notes(config, train_images, weights, order)
    trainer.log = _log(run, found, trainer, task, order.steps_per_epoch, notes)
    return trainer


def _go_on(trainer: Trainer, found: Found) -> None:
    try:
        with host_memory():
            trainer.load_state(found[1])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if _is_of_device(error):
            raise
        raise UserError(does_not_fit(*found, error)) from None


def _is_of_device(error: Exception) -> bool:
    """Whether it is the device's memory or the device itself that failed, and not what was asked of it."""
    told = str(error)  # load_state_dict makes a RuntimeError of what it meets
    is_plain = type(error) is RuntimeError and "CUDA error" not in told and "CUDA out of memory" not in told
    return isinstance(error, RuntimeError) and not is_plain


def _begin_notes(config: RunConfig, plan: EpochPlan, built: BuiltModel, started_from: str | None) -> list[str]:
    """What a trainer says of its model: where its weights are from, what its method does to figures, what is frozen."""
    notes = [started_from] if started_from else []
    if built.method.note:
        notes.append(f"note: {built.method.note}")
    if plan.frozen:
        head = ", ".join(name for name, parameter in built.model.named_parameters() if parameter.requires_grad)
        notes.append(f"epochs 1 to {config.model.frozen_epochs} train the head alone: {head}")
    return notes


def _cadence(
    config: RunConfig, plans: tuple[EpochPlan, ...], plan: EpochPlan, step: TrainStep, order: data.GlobalOrder
) -> Cadence:
    section = config.checkpoint
    return Cadence(
        plans=plans,
        curriculum=plan.curriculum,
        schedule=build_schedule(config, step.optimizer, order.steps_per_epoch),
        log_every=config.train.log_every,
        evaluate_every=config.evaluate.every_epochs,
        save_every=section.every_epochs,
        save_every_steps=section.every_steps,
        save_every_seconds=float("inf") if section.every_minutes is None else 60 * section.every_minutes,
    )


def _evaluation(
    config: RunConfig, plan: EpochPlan, built: BuiltModel, task: Task, inputs: Inputs, step: TrainStep
) -> Evaluation:
    sizes = None
    if plan.image_size != config.model.image_size:
        num_classes = int(getattr(built.model, "num_classes"))  # noqa: B009
        sizes = BothSizes(
            side_of(plan.image_size), loads_pairs(config, plan), lambda: build_model(config, num_classes).model
        )
    return Evaluation(task, inputs.val, step.processes, step.autocast, sizes, config.checkpoint.best_metric)


def _log(run: Setting, found: Found | None, trainer: Trainer, task: Task, steps: int, notes: list[str]) -> RunLog:
    """The run's log, with what is to be said of its beginning; nothing but on the main process."""
    if not run.processes.is_main:
        return RunLog()
    if found is not None:
        notes = [*kept_aside(run.folder, found, run.belongs_to), *notes, *changes(found[1], run.belongs_to)]
    notes = [*tell_broken(run.folder.metrics), *notes]
    progress = trainer.progress
    log = Several(
        [
            JsonLines(run.folder.metrics, progress.epoch, progress.step),
            _tensorboard(run, progress, task),
            run.tracking.log(_settings(run.config, but=("log",)), _groups(task), steps),
            Console(run.config.epochs, task.shown, trainer.evaluation.best_name, _best(run, trainer)),
        ]
    )
    for line in notes:
        log.note(line)
    return log


def _best(run: Setting, trainer: Trainer) -> tuple[int | None, float] | None:
    """The best epoch before this start, None where the folder's lines do not tell it, and its score."""
    evaluation, best = trainer.evaluation, trainer.progress.best
    if best == -math.inf:
        return None
    score = evaluation.score_of(best)
    epochs = read_metrics(run.folder.metrics, "epoch")
    return next((line["epoch"] for line in epochs if line.get(evaluation.best_name) == score), None), score


def _tensorboard(run: Setting, progress: Progress, task: Task) -> TensorBoard:
    return TensorBoard(
        run.folder.tensorboard,
        progress.epoch,
        progress.step,
        _groups(task),
        dump_config(run.config),
        _settings(run.config, but=NOT_COMPARED),
        f"val_{task.headline}",
    )


def _groups(task: Task) -> dict[str, str]:
    losses = {"loss", *task.loss_terms}
    best, headline = [name for name in task.scores if name not in losses and name != "images"], task.headline
    return groups_of(
        [*(f"val_{name}" for name in best), f"val_{headline}_full", f"ema_{headline}"],
        [f"{split}_{name}" for split in ("train", "val") for name in losses],
    )


def _settings(config: RunConfig, but: Sequence[str]) -> dict[str, bool | float | str]:
    """Single values of the configuration by their dotted paths, without some sections."""
    return dict(_flat({name: value for name, value in config.model_dump(mode="json").items() if name not in but}))


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Single values of nested sections by their dotted paths; what is neither a number nor a text as text."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, (bool, int, float, str)) else str(value)
