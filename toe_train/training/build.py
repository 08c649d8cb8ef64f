"""The one place where the configuration meets constructors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import PatchDropout
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from toe_train import data, models
from toe_train.data.transforms import Transform
from toe_train.errors import UserError
from toe_train.expansion import TokenExpansion, attach
from toe_train.recipes import RunConfig, plan_epochs
from toe_train.training.checkpoint import Checkpoints
from toe_train.training.distributed import Processes
from toe_train.training.draws import ForwardDraws
from toe_train.training.evaluate import Scores, evaluate
from toe_train.training.loop import Progress, Trainer
from toe_train.training.losses import ClassificationLoss
from toe_train.training.optim import EpochSchedule, create_optimizer
from toe_train.training.pictures import kept_token_pictures
from toe_train.training.precision import autocast_on, scaler_on
from toe_train.training.resume import differences, require_same, resume_point
from toe_train.training.runfolder import RunFolder, versions
from toe_train.training.runlog import Console, JsonLines, RunLog, Several, TensorBoard

PICTURES = 8  # images of which TensorBoard shows the kept tokens


@dataclass(frozen=True)
class BuiltModel:
    """A model with what training attached to it."""

    model: nn.Module
    expansion: TokenExpansion | None
    drop_path: models.DropPathDraws
    grid: tuple[int, int]  # rows and columns of patches

    @property
    def num_tokens(self) -> int:
        """Patch tokens N of an image."""
        return self.grid[0] * self.grid[1]


def build_model(config: RunConfig, num_classes: int) -> BuiltModel:
    """The model in its initial state, a function of the seed alone, with ToE attached where the run has it.

    Raises:
        UserError: a model that does not exist, cannot be built so, or cannot be trained with ToE.
    """
    section = config.model
    with data.seeded(data.derive_seed(config.seed, "init")):
        model = models.create_model(section.name, num_classes, section.drop_path, section.image_size, **section.kwargs)
    embedding: Any = getattr(model, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if grid is None:
        raise UserError(
            f"model.name = {section.name}: has no patch embedding; toe-train trains vision transformers, e.g. "
            "deit_tiny_patch16_224"
        )
    patch = embedding.patch_size[0]
    if section.image_size % patch:
        below = section.image_size // patch * patch
        raise UserError(
            f"model.image_size = {section.image_size} is not a multiple of the patch size {patch} of {section.name}: "
            f"the model would not see the edge; use {below or patch} or {below + patch}"
        )
    _refuse_dropout(model)
    drop_path = models.give_drop_path(model)
    if config.expansion is None:
        return BuiltModel(model, None, drop_path, grid)
    options = config.expansion
    try:
        expansion = TokenExpansion(
            options.schedule(),
            num_prefix_tokens=getattr(model, "num_prefix_tokens", 1),
            metric=options.metric,
            initialization=options.initialization,
            expansion=options.expansion,
            merging=options.merging,
        )
        attach(model, expansion, options.after_block)
        for stage in range(1, len(options.keep_rates) + 1):
            expansion.schedule.num_kept(stage, grid[0] * grid[1])
    except ValueError as error:
        raise UserError(f"expansion: {error}") from None
    return BuiltModel(model, expansion, drop_path, grid)


def _refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        rate = getattr(module, "p" if isinstance(module, nn.Dropout) else "prob", 0.0)
        if isinstance(module, (nn.Dropout, PatchDropout)) and rate:
            raise UserError(
                f"model.kwargs: {name} drops out with probability {rate}, which would draw other numbers for every "
                "number of processes; leave dropout at 0, as all recipes here do, and use model.drop_path"
            )


def check_data(config: RunConfig) -> None:
    """The start-up check of the data set, downloaded first where the run says so; one process does it for all."""
    section = config.data
    if section.download:
        data.open_datasets(section.kind, section.root, download=True)
    # Where unreadable images are to be passed over, they are not looked for.
    sample = section.check_sample if section.on_error == "fail" else 0
    data.require_healthy(section.kind, section.root, sample=sample)


def batch_layout(config: RunConfig, world_size: int) -> data.BatchLayout:
    """How the global batch is cut for `world_size` processes."""
    accumulation = data.split_batch(config.train.global_batch, world_size, config.train.max_micro_batch)
    return data.BatchLayout(config.train.global_batch, config.augment.mix_group, world_size, accumulation)


def describe_split(layout: data.BatchLayout) -> str:
    """The split of the global batch in words."""
    return (
        f"global batch {layout.global_batch} = {layout.world_size} process{'es' * (layout.world_size > 1)} x "
        f"{layout.accumulation} accumulation x {layout.micro_batch} images"
    )


def build_trainer(config: RunConfig, processes: Processes, folder: RunFolder, resume: str) -> Trainer:
    """All parts of a run, at its beginning or where the checkpoint that `resume` names left it.

    It does not communicate, so that a fault in one process can be told to the others (`Processes.together`), and takes
    the data set as checked (`check_data`).

    Raises:
        UserError: for everything that cannot work, before anything is trained or overwritten.
    """
    train_images, val_images = data.open_datasets(config.data.kind, config.data.root)
    layout = batch_layout(config, processes.world_size)
    order = data.GlobalOrder(len(train_images), layout.global_batch, config.seed, config.augment.repeats)
    sampler = data.TrainBatchSampler(order, layout, processes.rank)
    built = build_model(config, len(train_images.classes))
    model = built.model.to(processes.device)
    belongs_to: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "classes": train_images.classes,
        "images": len(train_images),
        "versions": versions(),
    }

    checkpoints = Checkpoints(folder.checkpoints)
    found = resume_point(checkpoints, resume, belongs_to)
    progress = Progress(**found[1]["progress"]) if found else Progress()

    ema = ModelEmaV3(model, decay=config.train.ema_decay) if config.train.ema_decay is not None else None
    optimizer = build_optimizer(config, model)
    if config.train.compile:
        model.compile()
    skipped = None
    if config.data.on_error == "skip":
        skipped = data.SkippedImages(folder.skipped, config.data.max_skipped)
    eval_set = data.EvalSet(val_images, build_eval_transform(config), skipped)
    pin = processes.device.type == "cuda"
    trainer = Trainer(
        plans=plan_epochs(config),
        processes=processes,
        model=model,
        ema=ema,
        expansion=built.expansion,
        num_tokens=built.num_tokens,
        loss=ClassificationLoss(),
        optimizer=optimizer,
        schedule=build_schedule(config, optimizer),
        scaler=scaler_on(processes.device, config.train.precision),
        autocast=autocast_on(processes.device, config.train.precision),
        clip_grad=config.optim.clip_grad,
        layout=layout,
        sampler=sampler,
        train_batches=data.train_loader(
            data.TrainSet(train_images, build_train_transform(config), config.seed, skipped),
            sampler,
            config.data.workers,
            pin,
        ),
        skipped=skipped,
        val_batches=_share(eval_set, config, processes),
        mixing=build_mixing(config, len(train_images.classes), layout),
        draws=ForwardDraws(
            config.seed,
            layout,
            processes.rank,
            built.drop_path,
            built.expansion,
            built.num_tokens,
            processes.device,
        ),
        pictures=_pictures(config, built, eval_set, processes),
        checkpoints=checkpoints,
        belongs_to=belongs_to,
        log=RunLog(),
        log_every=config.train.log_every,
        evaluate_every=config.evaluate.every_epochs,
        save_every=config.checkpoint.every_epochs,
        save_every_steps=config.checkpoint.every_steps,
        best_metric=config.checkpoint.best_metric,
        progress=progress,
    )
    if found is not None:
        try:
            trainer.load_state(found[1])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(_does_not_fit(found[0], error)) from None
    # Last of all, since it drops the metric lines of an epoch that was broken off.
    trainer.log = _build_log(config, processes, folder, progress)
    changed = differences(found[1]["config"], belongs_to["config"]) if found is not None else []
    if changed and progress.epoch < config.epochs:
        trainer.log.note("resuming with other values than the checkpoint's, which count from now on:")
        trainer.log.note("\n".join(f"  {line}" for line in changed))
    return trainer


def evaluate_checkpoint(
    config: RunConfig, path: Path, state: dict[str, Any], weights: str, processes: Processes
) -> Scores:
    """Scores of a checkpoint's raw (`weights="model"`) or averaged (`"ema"`) model on the run's val images.

    Raises:
        UserError: the checkpoint has no such weights, or belongs to another model or other classes.
    """
    processes.main_only(lambda: check_data(config))
    _, val_images = data.open_datasets(config.data.kind, config.data.root)
    require_same(path, state, config.model_dump(mode="json"), val_images.classes)
    if state[weights] is None:
        raise UserError(f"checkpoint {path} holds no averaged weights (train.ema_decay was null); use --weights model")
    model = build_model(config, len(val_images.classes)).model.to(processes.device)
    try:
        model.load_state_dict(state[weights])
    except RuntimeError as error:
        raise UserError(_does_not_fit(path, error)) from None
    eval_set = data.EvalSet(val_images, build_eval_transform(config))
    autocast = autocast_on(processes.device, config.train.precision)
    return evaluate([model], _share(eval_set, config, processes), processes, autocast)[0]


def _does_not_fit(path: Path, error: Exception) -> str:
    return (
        f"checkpoint {path} does not fit this model and program ({str(error).strip()[:300]}); it was changed, or "
        "written with other versions, which it names: use those, or start anew with --resume never"
    )


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of the `optim` section, at the peak learning rate."""
    section = config.optim
    return create_optimizer(
        model, section.name, config.peak_lr, section.weight_decay, section.betas, section.eps, section.momentum
    )


def build_schedule(config: RunConfig, optimizer: torch.optim.Optimizer) -> EpochSchedule:
    """Learning rates of the `schedule` section."""
    return EpochSchedule(optimizer, config.epochs, **config.schedule.model_dump())


def build_train_transform(config: RunConfig) -> Transform:
    """Training transform of the `augment` section."""
    section = config.augment
    build = partial(
        data.train_transform,
        image_size=config.model.image_size,
        crop=section.crop,
        crop_scale=section.crop_scale,
        crop_ratio=section.crop_ratio,
        interpolation=section.interpolation,
        hflip=section.hflip,
        rand_augment=section.rand_augment,
        color_jitter=section.color_jitter,
        erasing_prob=section.erasing_prob,
        erasing_mode=section.erasing_mode,
        erasing_count=section.erasing_count,
        mean=section.mean,
        std=section.std,
    )
    try:
        return build()
    except UserError as error:
        raise UserError(f"augment.{error}") from None


def build_eval_transform(config: RunConfig) -> Transform:
    """Evaluation transform of the `evaluate` section."""
    return data.eval_transform(
        image_size=config.model.image_size,
        crop_pct=config.evaluate.crop_pct,
        interpolation=config.evaluate.interpolation,
        mean=config.augment.mean,
        std=config.augment.std,
    )


def build_mixing(config: RunConfig, num_classes: int, layout: data.BatchLayout) -> data.BatchMixing:
    """Mixup and CutMix of the `augment` section."""
    section = config.augment
    return data.BatchMixing(
        num_classes,
        section.mixup,
        section.cutmix,
        section.mix_prob,
        section.mix_switch_prob,
        section.smoothing,
        config.seed,
        layout,
    )


def _share(eval_set: data.EvalSet, config: RunConfig, processes: Processes) -> data.CleanErrors:
    indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
    pin = processes.device.type == "cuda"
    return data.eval_loader(eval_set, indices, config.evaluate.batch, config.data.workers, pin)


def _pictures(config: RunConfig, built: BuiltModel, eval_set: data.EvalSet, processes: Processes) -> Any:
    """A function that draws what ToE keeps of a few val images, on the main process of a run with ToE."""
    if built.expansion is None or not processes.is_main:
        return None
    step = max(1, len(eval_set) // PICTURES)
    images: Tensor = torch.stack([eval_set[index][0] for index in range(0, len(eval_set), step)[:PICTURES]])
    return partial(
        kept_token_pictures,
        built.model,
        built.expansion,
        images.to(processes.device),
        built.grid,
        config.augment.mean,
        config.augment.std,
        noise=torch.rand(len(images), built.num_tokens, generator=data.generator(config.seed, "pictures")).to(
            processes.device
        ),
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
