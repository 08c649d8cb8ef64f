"""What a run is: the sections of the YAML file together, and the rules that hold between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from toe_train.recipes.curriculum import CurriculumConfig, equal_compute_stages
from toe_train.recipes.data import DataConfig
from toe_train.recipes.detection import DetectionConfig, TaskConfig, TaskKind
from toe_train.recipes.fields import HF, INCIDENTAL, Integer, Section
from toe_train.recipes.finetuning_rules import FINETUNING_CHECKS
from toe_train.recipes.log import LogConfig
from toe_train.recipes.methods import DepthGrowthConfig, OtherMethod
from toe_train.recipes.sections import (
    AugmentConfig,
    CheckpointConfig,
    EvaluateConfig,
    ExpansionConfig,
    MethodSection,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TokenLabelsConfig,
    TrainConfig,
)
from toe_train.recipes.shares import first_epochs, share_of
from toe_train.recipes.task_rules import TASK_CHECKS

# What makes a plan meaningless and is refused, unless a run asks for it by name; see `oddities`.
Allowed = Literal["last_stage_not_reached", "peak_not_reached", "min_lr_above_peak", "warmup_lr_above_peak"]

MOST_OF_AUTO = 128  # images of a step with train.global_batch=auto


class RunConfig(Section):
    """A whole run."""

    seed: Annotated[Integer, Field(ge=0)] = 0
    epochs: Annotated[Integer, Field(gt=0, le=100_000)] = 300
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    expansion: ExpansionConfig | None = None
    method: OtherMethod | None = None  # another one than Token Expansion
    curriculum: CurriculumConfig | None = None
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    token_labels: TokenLabelsConfig | None = None
    detection: DetectionConfig = DetectionConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    allow: Annotated[tuple[Allowed, ...], INCIDENTAL] = ()

    @model_validator(mode="before")
    @classmethod
    def _shares_are_epochs(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        epochs = values.get("epochs", cls.model_fields["epochs"].default)
        resolved = dict(values)
        for name in ("expansion", "curriculum"):
            section = values.get(name)
            if isinstance(section, dict) and section.get("stage_shares") is not None:
                resolved[name] = {**section, "stage_epochs": _epochs_of_shares(name, section, epochs)}
        return resolved

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for check in CROSS_CHECKS:
            check(self)
        return self

    @property
    def cheaper(self) -> MethodSection:
        """The section of the method that makes training cheaper; without one, the base, which changes nothing."""
        return self.expansion or self.method or MethodSection()

    @property
    def task_kind(self) -> TaskKind:
        """What is learned; token labels ask for their task by themselves."""
        return self.task.kind if self.token_labels is None else "token_labelling"

    @property
    def mixes_images(self) -> bool:
        """Whether two images become one in training: by Mixup or CutMix, or by LV-ViT's MixToken."""
        if self.task_kind == "classification":
            return self.augment.mixup > 0 or self.augment.cutmix > 0
        return self.task_kind == "token_labelling"

    @property
    def global_batch(self) -> int:
        """Images per optimiser step; with train.global_batch=auto, those of very many images, see `of_images`."""
        asked = self.train.global_batch
        return asked if isinstance(asked, int) else MOST_OF_AUTO

    @property
    def peak_lr(self) -> float:
        """Learning rate at the top of the schedule, scaled by the batch (DeiT main.py: lr * batch / 512)."""
        if self.optim.lr_base_batch is None:
            return self.optim.lr
        return self.optim.lr * self.global_batch / self.optim.lr_base_batch


def _architecture_is_of_transformers(config: RunConfig) -> None:
    if config.model.architecture is not None and not config.model.name.startswith(HF):
        raise ValueError(
            f"model.architecture: it is of a model of transformers, and model.name={config.model.name} is none; set it "
            f"to null, or model.name to {HF} and a folder"
        )


def _a_list_is_named(config: RunConfig) -> None:
    if config.data.kind == "list" and config.data.train_list is None and config.data.val_list is None:
        raise ValueError(
            "data.kind: list needs data.train_list or data.val_list, files of lines path,label; set one, or "
            "data.kind=image_folder"
        )


def _one_method(config: RunConfig) -> None:
    if config.expansion is not None and config.method is not None:
        raise ValueError(
            f"method: {config.method.kind} stands beside expansion, and a run has one method; set expansion=null, or "
            "method=null for Token Expansion"
        )


def _there_are_averages_to_copy(config: RunConfig) -> None:
    method = config.method
    if not isinstance(method, DepthGrowthConfig) or method.copy == "double" or method.source != "ema":
        return
    if config.train.ema_decay is None:
        raise ValueError(
            "method.source: ema copies averaged weights, and train.ema_decay=null has none; use method.source=raw"
        )


def _epochs_of_shares(name: str, section: dict[str, Any], epochs: Any) -> list[int]:
    """The stage_epochs that a section's stage_shares come to; made-up ones where its field or `epochs` is at fault."""
    shares, given = section["stage_shares"], section.get("stage_epochs")
    if not isinstance(shares, (list, tuple)):
        return [0]
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        return list(range(len(shares)))
    try:
        for share in shares:
            share_of(share)
    except ValueError:
        return list(range(len(shares)))
    try:
        found = list(first_epochs(shares, epochs))
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None
    if given is not None and list(given) != found:
        raise ValueError(f"{name}: give one of stage_epochs and stage_shares; the shares come to {found} here")
    return found


def _best_metric_is_measured(config: RunConfig) -> None:
    metric = config.checkpoint.best_metric
    if metric.startswith("ema_") and config.train.ema_decay is None:
        plain = metric.replace("ema_", "val_")
        raise ValueError(
            f"checkpoint.best_metric: {metric} needs an averaged model; set train.ema_decay, or use {plain}"
        )


def _cooldown_leaves_a_cosine(config: RunConfig) -> None:
    if config.schedule.cooldown_epochs >= config.epochs:
        raise ValueError(
            f"schedule.cooldown_epochs: {config.schedule.cooldown_epochs} of {config.epochs} epochs leave none for the "
            f"cosine; use at most {config.epochs - 1}"
        )


def _curriculum_ends_at_full_size(config: RunConfig) -> None:
    if config.curriculum is not None and config.curriculum.image_sizes[-1] != config.model.image_size:
        raise ValueError(
            f"curriculum.image_sizes: the last one, {config.curriculum.image_sizes[-1]}, must be model.image_size, "
            f"{config.model.image_size}, at which images are loaded and the run ends"
        )


def _budget_fits_the_schedule(config: RunConfig) -> None:
    section, schedule = config.curriculum, config.schedule
    if section is None or section.budget_epochs is None:
        return
    budget = section.budget_epochs
    if schedule.unit != "step":
        raise ValueError(
            "curriculum.budget_epochs: its stages have schedules of their own, by step; set schedule.unit=step"
        )
    if schedule.warmup_epochs >= budget:
        raise ValueError(
            f"schedule.warmup_epochs: {schedule.warmup_epochs} of curriculum.budget_epochs={budget} leave "
            f"none for the cosine; use at most {budget - 1}"
        )
    try:
        last = equal_compute_stages(budget, section.image_sizes, schedule.warmup_epochs)[-1]
    except ValueError as error:
        raise ValueError(f"curriculum.{error}") from None
    if config.epochs != last.first + last.epochs:
        raise ValueError(
            f"epochs: {config.epochs} must be those of the curriculum's stages; curriculum.budget_epochs={budget} "
            f"needs epochs={last.first + last.epochs}"
        )


def _curriculum_is_without_token_labels(config: RunConfig) -> None:
    if config.curriculum is not None and config.task_kind == "token_labelling":
        raise ValueError("curriculum: token labels are of full-size images' patches; set one of them to null")


def _cooldown_is_by_epoch(config: RunConfig) -> None:
    if config.schedule.unit == "step" and config.schedule.cooldown_epochs:
        raise ValueError(
            f"schedule.cooldown_epochs: {config.schedule.cooldown_epochs} needs schedule.unit=epoch: by step the "
            "cosine reaches the run's end; use 0"
        )


def _token_labels_fit_the_images(config: RunConfig) -> None:
    if config.task_kind != "token_labelling":
        return
    if not config.data.of_files:
        raise ValueError(
            f"token_labels: {config.data.kind} has no files that label files could be named after; use "
            "data.kind=image_folder, or token_labels=null"
        )
    if config.augment.on_device:
        raise ValueError("augment.on_device: token labels move with the image on the host; set it to false")
    if config.augment.mixup or config.augment.cutmix:
        raise ValueError(
            "token_labels: images with them are mixed by MixToken, in the model; set augment.mixup=0 and "
            "augment.cutmix=0"
        )


# Rules between sections, in order: the first one that is broken is reported.
CROSS_CHECKS = (
    _architecture_is_of_transformers,
    _a_list_is_named,
    *TASK_CHECKS,
    *FINETUNING_CHECKS,
    _one_method,
    _there_are_averages_to_copy,
    _best_metric_is_measured,
    _cooldown_leaves_a_cosine,
    _curriculum_ends_at_full_size,
    _budget_fits_the_schedule,
    _curriculum_is_without_token_labels,
    _cooldown_is_by_epoch,
    _token_labels_fit_the_images,
)


def dotted_key(name: str) -> str | None:
    """The dotted key that is meant by its own name (`lr`, `global-batch`, `optim.lr`); None where there is none."""
    section, _, key = name.replace("-", "_").rpartition(".")
    if not section and key in RunConfig.model_fields:
        return key
    for owner, field in RunConfig.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and key in inner.model_fields and section in ("", owner):
            return f"{owner}.{key}"
    return None


def section_of(annotation: Any, value: Any = None) -> type[Section] | None:
    """The section class behind a field's annotation (`ExpansionConfig | None` counts), or None for a plain value.

    Of several, which a `kind` tells apart, it is that of `value`.
    """
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = [inner for part in get_args(annotation) if (inner := section_of(part, value)) is not None]
    if len(found) > 1:
        kind = value.get("kind") if isinstance(value, dict) else None
        found = [inner for inner in found if get_args(inner.model_fields["kind"].annotation) == (kind,)]
    return found[0] if found else None
