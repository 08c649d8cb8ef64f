"""The one place where the configuration meets constructors: a run of all parts, each part made in `build_*.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from toe_train import data
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, config_at, differences, essential, plan_epochs
from toe_train.training.build_inputs import (
    batch_layout,
    build_eval_transform,
    build_finish,
    build_train_set,
    build_val_batches,
    check_data,
)
from toe_train.training.build_model import BuiltModel, build_model, load_initial
from toe_train.training.build_step import MicroBatches, build_compile, build_schedule, build_step
from toe_train.training.checkpoint import Checkpoints, keep, weights_of
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.distributed import Processes, jobs
from toe_train.training.evaluate import Scores, evaluate
from toe_train.training.loop import Trainer
from toe_train.training.pictures import kept_token_pictures
from toe_train.training.precision import autocast_on
from toe_train.training.progress import Progress
from toe_train.training.recovery import Recovery
from toe_train.training.resolution import BothSizes, fit_positions
from toe_train.training.resume import require_same, require_same_experiment, resume_point
from toe_train.training.runfolder import RunFolder, versions
from toe_train.training.runlog import Console, JsonLines, RunLog, Several, TensorBoard

PICTURES = 8  # images of which TensorBoard shows the kept tokens


def build_trainer(
    config: RunConfig, processes: Processes, folder: RunFolder, resume: str, limits: MicroBatches | None = None
) -> Trainer:
    """All parts of a run, at its beginning or where the checkpoint that `resume` names left it.

    A curriculum has a trainer for each of its stages: this one is for the epoch at which the run stands.

    It does not communicate, so that a fault in one process can be told to the others (`Processes.together`), and takes
    the data set as checked (`check_data`). `limits` are the micro-batches that the device holds.

    Raises:
        UserError: for everything that cannot work, before anything is trained or overwritten.
    """
    train_images, val_images = data.open_datasets(config.data.kind, config.data.root)
    num_classes = len(train_images.classes)
    belongs_to: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "classes": train_images.classes,
        "images": {"count": len(train_images), "digest": train_images.digest()},
        "versions": versions(),
        "jobs": jobs(),
    }

    checkpoints = Checkpoints(folder.checkpoints)
    found = resume_point(checkpoints, resume, belongs_to)
    progress = Progress(**found[1]["progress"]) if found else Progress()
    if found is not None and progress.epoch >= config.epochs:
        require_same_experiment(folder.root, config.epochs, found[1]["config"], belongs_to["config"])
    plans = plan_epochs(config)
    plan = plans[min(progress.epoch, config.epochs - 1)]
    now = config_at(config, plan)

    layout = batch_layout(now, processes.world_size, limits[plan.curriculum] if limits else None)
    order = data.GlobalOrder(len(train_images), layout.global_batch, config.seed, config.augment.repeats)
    sampler = data.TrainBatchSampler(order, layout, processes.rank)
    built = build_model(config, num_classes, plan.image_size)
    started_from = load_initial(config, built) if found is None else None
    built.model.to(processes.device)
    step = build_step(now, built, num_classes, layout, processes, plan.image_size)
    skipped = None
    if config.data.on_error == "skip":
        skipped = data.SkippedImages(folder.skipped, config.data.max_skipped)
    seen = build_eval_transform(config, plan.loaded_size)
    in_pairs = plan.loaded_size < config.model.image_size
    shown = data.TwoSizes(seen, build_eval_transform(config)) if in_pairs else seen
    train_set = build_train_set(now, train_images, skipped, plan.loaded_size)
    both_sizes = None
    if plan.image_size < config.model.image_size:
        whole = partial(build_model, config, num_classes)
        both_sizes = BothSizes(plan.image_size, in_pairs, lambda: whole().model.to(processes.device))
    every_minutes = config.checkpoint.every_minutes
    finish = build_finish(config, plan.image_size)
    stages = list(dict.fromkeys(other.stage for other in plans[plan.epoch :] if other.curriculum == plan.curriculum))
    trainer = Trainer(
        plans=plans,
        curriculum=plan.curriculum,
        both_sizes=both_sizes,
        expansion=built.expansion,
        num_tokens=built.num_tokens,
        step=step,
        compile=build_compile(now, built, step, plan.loaded_size, stages),
        schedule=build_schedule(config, step.optimizer, order.steps_per_epoch),
        sampler=sampler,
        train_batches=DeviceBatches(
            data.train_loader(train_set, sampler, config.data.workers, processes.device.type == "cuda"),
            processes.device,
            finish,
        ),
        val_batches=build_val_batches(config, data.EvalSet(val_images, shown, skipped), processes),
        skipped=skipped,
        recovery=Recovery(
            max_skipped=config.train.max_skipped_steps,
            max_rollbacks=config.train.max_rollbacks,
            path=folder.not_finite,
            order=order,
            describe=train_images.describe,
        ),
        pictures=_pictures(
            config, built, plan.image_size, train_set, data.EvalSet(val_images, seen, skipped), processes
        ),
        checkpoints=checkpoints,
        belongs_to=belongs_to,
        log=RunLog(),
        log_every=config.train.log_every,
        evaluate_every=config.evaluate.every_epochs,
        save_every=config.checkpoint.every_epochs,
        save_every_steps=config.checkpoint.every_steps,
        save_every_seconds=float("inf") if every_minutes is None else 60 * every_minutes,
        best_metric=config.checkpoint.best_metric,
        progress=progress,
        saved=found is not None and found[0].resolve() == checkpoints.last.resolve(),
    )
    if found is not None:
        try:
            trainer.load_state(found[1])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(_does_not_fit(found[0], found[1], error)) from None
    # Last of all, since it drops the metric lines of what came later.
    kept: list[str] = []
    if found is not None and processes.is_main and progress.epoch < config.epochs:
        is_older = checkpoints.last.exists() and not found[0].samefile(checkpoints.last)
        if is_older or essential(found[1]["config"]) != essential(belongs_to["config"]):
            kept = keep(checkpoints, folder.metrics)
    trainer.log = _build_log(config, processes, folder, progress)
    for line in kept:
        trainer.log.note(line)
    if started_from is not None:
        trainer.log.note(started_from)
    changed = []
    if found is not None:
        changed = differences(found[1]["config"], belongs_to["config"])
        changed += differences(found[1]["versions"], versions(), "version of ")
    if changed and progress.epoch < config.epochs:
        trainer.log.note(
            "resuming with other values than the checkpoint's, which count from now on (--resume never "
            "begins anew, and sets this run aside):"
        )
        trainer.log.note("\n".join(f"  {line}" for line in changed))
    return trainer


def evaluate_checkpoint(
    config: RunConfig, path: Path, state: dict[str, Any], weights: str, processes: Processes
) -> Scores:
    """Scores of a checkpoint's raw (`weights="model"`) or averaged (`"ema"`) model on the run's val images.

    Raises:
        UserError: the checkpoint has no such weights, or belongs to another model or other classes.
    """
    # Label files are for training alone.
    processes.main_only(lambda: check_data(config.model_copy(update={"token_labels": None})))
    _, val_images = data.open_datasets(config.data.kind, config.data.root)
    require_same(path, state, config.model_dump(mode="json"), val_images.classes)
    chosen = weights_of(state, weights)
    model = build_model(config, len(val_images.classes)).model.to(processes.device)
    try:
        model.load_state_dict(fit_positions(chosen, model))
    except RuntimeError as error:
        raise UserError(_does_not_fit(path, state, error)) from None
    autocast = autocast_on(processes.device, config.train.precision)
    with TemporaryDirectory() as place:  # the list of a run that is over stays as it is
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", config.data.max_skipped)
        noted = skipped if config.data.on_error == "skip" else None
        eval_set = data.EvalSet(val_images, build_eval_transform(config), noted)
        scores = evaluate([model], build_val_batches(config, eval_set, processes), processes, autocast)[0]
        processes.together(skipped.require_within_limit)  # each for its own share
    return scores


def _does_not_fit(path: Path, state: dict[str, Any], error: Exception) -> str:
    others = "; ".join(differences(state["versions"], versions(), "version of ")) or "it was changed"
    return (
        f"checkpoint {path} does not fit this model and program ({str(error).strip()[:300]}); {others}: use what it "
        "was written with, or start anew with --resume never"
    )


def _pictures(
    config: RunConfig,
    built: BuiltModel,
    image_size: int,
    train_set: data.TrainSet,
    eval_set: data.EvalSet,
    processes: Processes,
) -> Any:
    """A function that draws what ToE keeps of a few val images, on the main process of a run with ToE.

    With token labels they are training images, which alone have labels, as the first epoch may show them.
    """
    if built.expansion is None or not processes.is_main:
        return None
    count = len(eval_set) if config.token_labels is None else len(train_set)
    chosen = range(0, count, max(1, count // PICTURES))[:PICTURES]
    patch_targets = None
    if config.token_labels is None:
        images: Tensor = data.low_frequency_crop(torch.stack([eval_set[index][0] for index in chosen]), image_size)
    else:
        keys = [data.SampleKey(index, 0, index) for index in chosen]
        pixels, (scores, ids, crop, _) = data.collate([train_set[key] for key in keys])
        images = build_finish(config)(pixels)
        patch_targets = data.token_targets(
            scores, ids, crop, len(train_set.dataset.classes), built.grid, 0.0, config.token_labels.alignment
        )[1].to(processes.device)
    noise = torch.rand(len(images), built.num_tokens, generator=data.generator(config.seed, "pictures"))
    return partial(
        kept_token_pictures,
        built.model,
        built.expansion,
        images.to(processes.device),
        built.grid,
        config.augment.mean,
        config.augment.std,
        noise=noise.to(processes.device),
        patch_targets=patch_targets,
    )


def _build_log(config: RunConfig, processes: Processes, folder: RunFolder, progress: Progress) -> RunLog:
    if not processes.is_main:
        return RunLog()
    return Several(
        [
            JsonLines(folder.metrics, progress.epoch, progress.step),
            TensorBoard(folder.tensorboard, progress.epoch),
            Console(config.epochs),
        ]
    )
