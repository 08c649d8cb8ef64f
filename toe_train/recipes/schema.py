"""What a run is: one frozen, validated record per section of the YAML file.

The defaults are the DeiT recipe of the paper's experiments (DeiT `main.py` and `datasets.py` at facebookresearch/deit
7e160fe, with timm 0.9.2); `configs/deit_tiny.yaml` spells out the same values and a test keeps the two equal. Every
field is read somewhere; unknown keys are refused.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from toe_train.expansion.schedule import ExpansionSchedule
from toe_train.recipes.curriculum import equal_compute_stages


def _none_of_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


# YAML's true would otherwise count as 1.
Integer = Annotated[int, BeforeValidator(_none_of_bool)]
Number = Annotated[float, BeforeValidator(_none_of_bool), Field(allow_inf_nan=False)]
PositiveInteger = Annotated[Integer, Field(gt=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]

HomePath = Annotated[str, AfterValidator(os.path.expanduser)]  # a shell expands no ~ behind a =

Metric = Literal["cosine", "euclidean", "manhattan", "euclidean_released", "manhattan_released"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "random"]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no protected names (a section is called `model`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), str_strip_whitespace=True)


class ModelConfig(Section):
    """The network: a timm name or one of this project's own."""

    name: str = "deit_tiny_patch16_224"
    drop_path: BelowOne = 0.1  # the last block's rate; linear from 0 over the blocks
    image_size: PositiveInteger = 224
    # Fine-tuning: a checkpoint, a file of weights, or timm for its pre-trained ones; null for new weights.
    initial_weights: str | None = None
    initial_averaged: bool = False  # of a checkpoint of toe-train, the averaged weights
    # Passed to the model's constructor as they are, e.g. {patch_size: 4, depth: 6}.
    kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kwargs")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = {
            "num_classes": "the data set gives it",
            "in_chans": "images are read as RGB",
            "drop_path_rate": "use model.drop_path",
            "img_size": "use model.image_size",
            "pretrained": "use model.initial_weights",
            "pretrained_cfg": "use model.initial_weights",
            "checkpoint_path": "use model.initial_weights",
        }
        for key in value:
            if key in reserved:
                raise ValueError(f"must not hold {key}: {reserved[key]}")
        return value


class ExpansionConfig(Section):
    """Token Expansion; paper section 3. See `TokenExpansion` for what each option does to parity."""

    stage_epochs: tuple[Integer, ...]  # first epoch of each stage
    keep_rates: tuple[Number, ...]  # r_1 ... r_G, kept share of the patch tokens
    initial_keep_rate: Number  # r_0, share of the seeds
    repeats: Annotated[Integer, Field(gt=0, le=1000)] = 2  # k, rounds per stage
    after_block: Annotated[Integer, Field(ge=0)] = 1  # 0 is after the embedding
    metric: Metric = "cosine"
    initialization: Literal["spatial", "even", "random"] = "spatial"
    expansion: Literal["farthest", "uniform", "none"] = "farthest"
    merging: bool = True
    # What stands at dropped positions in a model with an output for each (LV-ViT): zeros, a copy of the token that they
    # were merged into, or nothing that the dense loss counts.
    restore: Literal["zero", "copy", "ignore"] = "zero"

    @model_validator(mode="after")
    def _legal_schedule(self) -> ExpansionConfig:
        self.schedule()
        return self

    def schedule(self) -> ExpansionSchedule:
        """The stages as the algorithm's own record."""
        return ExpansionSchedule(self.stage_epochs, self.keep_rates, self.initial_keep_rate, self.repeats)


class DataConfig(Section):
    """Where the images are."""

    kind: Literal["image_folder", "cifar10", "cifar100", "digits"] = "image_folder"
    root: HomePath = "/data/imagenet"  # holds train/<class>/* and val/<class>/* for an image folder; unused by digits
    workers: Annotated[Integer, Field(ge=0, le=512)] = 8  # loader processes per training process
    download: bool = False  # CIFAR only
    check_sample: Annotated[Integer, Field(ge=0)] = 256  # images of each split that are decoded before a run starts
    # An unreadable image ends the run, or is passed over (listed in the run folder, another in its place).
    on_error: Literal["fail", "skip"] = "fail"
    max_skipped: Annotated[Integer, Field(ge=0)] = 100  # different images that on_error: skip passes over, at most


class AugmentConfig(Section):
    """Training transforms, in the order in which they act (DeiT datasets.py; mixing as DeiT main.py)."""

    order: Literal["deit", "lvvit"] = "deit"  # lvvit: crop after rand_augment, which then sees the whole image
    crop: Literal["random_resized", "padded"] = "random_resized"  # padded: 4 pixels, what DeiT does at 32 x 32
    crop_scale: tuple[Number, Number] = (0.08, 1.0)
    crop_ratio: tuple[Number, Number] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    hflip: Probability = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: NonNegative = 0.3  # timm ignores it while rand_augment is on
    erasing_prob: Probability = 0.25
    erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    erasing_count: PositiveInteger = 1
    repeats: Annotated[Integer, Field(gt=0, le=100)] = 3  # repeated augmentation: views of an image per epoch
    mixup: NonNegative = 0.8  # alpha
    cutmix: NonNegative = 1.0  # alpha
    mix_prob: Probability = 1.0
    mix_switch_prob: Probability = 0.5
    mix_group: PositiveInteger = 256  # images that share one mixing ratio and pair up: DeiT's batch per GPU
    smoothing: BelowOne = 0.1
    # Crop, flip and rand_augment on the device, for hosts with few cores: the same draws, pixels off by little.
    on_device: bool = False
    mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"must be [low, high] with 0 < low <= high; {sorted(value)} would be in order")
        return value

    @field_validator("crop_scale")
    @classmethod
    def _share_of_the_image(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError(f"must be shares of the image's area, at most 1; [{min(value[0], 1.0)}, 1.0] would be")
        return value

    @field_validator("mix_group")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            near = " or ".join(str(even) for even in (value - 1, value + 1) if even)
            raise ValueError(f"must be even, since images are mixed in pairs; use {near}")
        return value


class TokenLabelsConfig(Section):
    """Label files for each part of a training image (LV-ViT); `toe-tools labels` makes them."""

    root: HomePath  # holds <class>/<image>.pt
    geometry: Literal["full", "center_crop"] = "full"  # what part of its image a map covers; see `JointTransform`
    # released: labels from the transposed place of the crop, as the released code takes them.
    alignment: Literal["correct", "released"] = "correct"
    dense_weight: NonNegative = 1.0  # of the patch tokens' loss
    cls_weight: NonNegative = 1.0  # of the class token's


class OptimConfig(Section):
    """Optimiser; no decay on 1-D parameters, biases, positional embedding and class token (timm's rule)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[Number, Field(gt=0, le=1e30)] = 5.0e-4
    lr_base_batch: PositiveInteger | None = 512  # lr is multiplied by global_batch / this; null takes lr as it is
    weight_decay: NonNegative = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # adamw
    eps: Positive = 1.0e-8  # adamw
    momentum: Probability = 0.9  # sgd
    clip_grad: Positive | None = None  # largest norm of all gradients together


class ScheduleConfig(Section):
    """Learning rate: linear warm-up, then a cosine."""

    # epoch: one value an epoch, the cosine's phase counted from epoch 0 (DeiT, LV-ViT); step: a value for each step,
    # the cosine beginning after the warm-up (EfficientTrain).
    unit: Literal["epoch", "step"] = "epoch"
    warmup_epochs: Annotated[Integer, Field(ge=0)] = 5
    # The last ones of `epochs`, at min_lr after the cosine's end; with unit: epoch.
    cooldown_epochs: Annotated[Integer, Field(ge=0)] = 0
    warmup_lr: NonNegative = 1.0e-6
    min_lr: NonNegative = 1.0e-5
    # With unit: epoch. released: epoch e trains at f(e - 1), as DeiT steps its scheduler at the end of an epoch; plain:
    # at f(e).
    stepping: Literal["released", "plain"] = "released"


class TrainConfig(Section):
    """How the steps are taken."""

    global_batch: PositiveInteger = 1024  # images per optimiser step over all processes and accumulation
    max_micro_batch: PositiveInteger = 256  # images per process and forward pass, at most
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"  # fp16 needs a GPU; a CPU then runs float32 and says so
    ema_decay: Annotated[Number, Field(gt=0, lt=1)] | None = 0.99996
    compile: bool | None = None  # torch.compile of the training step; null: on a GPU
    log_every: PositiveInteger = 50  # steps between lines of the run log
    # A step whose gradients are not finite is left out; after more than so many in a row the run goes back to its last
    # checkpoint, so many times in all, and on in another order of the images.
    max_skipped_steps: Annotated[Integer, Field(ge=0, le=1000)] = 10
    max_rollbacks: Annotated[Integer, Field(ge=0)] = 3


class EvaluateConfig(Section):
    """Validation: always the plain model with all tokens."""

    every_epochs: PositiveInteger = 1  # the last epoch is always evaluated
    batch: PositiveInteger = 256  # images per process
    crop_pct: Annotated[Number, Field(ge=0.1, le=1)] = 0.875
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"


class CheckpointConfig(Section):
    """What is written to `checkpoints/`."""

    every_epochs: PositiveInteger = 1  # the last epoch is always saved, and the last of each stage
    every_steps: PositiveInteger | None = None  # within an epoch too, at multiples of so many steps
    every_minutes: Positive | None = 15.0  # within an epoch too, so many minutes after the last one
    best_metric: Literal["val_top1", "ema_top1"] = "val_top1"


class CurriculumConfig(Section):
    """Stages of growing images and augmentation (EfficientTrain); beside the stages of Token Expansion."""

    image_sizes: tuple[PositiveInteger, ...]  # what the model sees, even; the last is model.image_size
    rand_augments: tuple[str | None, ...]  # each stage's augment.rand_augment
    # Images that share a mixing ratio, each stage's augment.mix_group, and, where train.max_micro_batch is not smaller,
    # per process and forward pass; the global batch stays.
    micro_batches: tuple[PositiveInteger, ...]
    # First epoch of each stage, the first one's 0; or null, and stages of equal compute in its place.
    stage_epochs: tuple[Integer, ...] | None = None
    # EfficientTrain++: what all stages together are worth in epochs at full size, see `equal_compute_stages`. `epochs`
    # is then their sum, and the schedule's warm-up is counted in epochs at full size too.
    budget_epochs: PositiveInteger | None = None
    # How images become smaller. low_frequency: on the device, by a crop of their spectrum (EfficientTrain); lanczos: in
    # the loader, after rand_augment (EfficientTrain++).
    downsampling: Literal["low_frequency", "lanczos"] = "low_frequency"
    # Epochs at full size of the plain training that predicted speed-ups compare with; null: as many as `epochs`.
    baseline_epochs: PositiveInteger | None = None

    @model_validator(mode="after")
    def _legal(self) -> CurriculumConfig:
        if (self.stage_epochs is None) == (self.budget_epochs is None):
            raise ValueError("give one of stage_epochs and budget_epochs, and null for the other")
        count = len(self.image_sizes)
        for name in ("rand_augments", "micro_batches", "stage_epochs"):
            if (own := len(getattr(self, name) or self.image_sizes)) != count:
                raise ValueError(f"{name} has {own} entries and image_sizes {count}: every stage needs one of each")
        if not count:
            raise ValueError("image_sizes=[] must hold the size of at least one stage")
        if (first := self.stage_epochs) and (first[0] != 0 or list(first) != sorted(set(first))):
            raise ValueError(f"stage_epochs={list(first)} must begin with 0 and rise from stage to stage")
        if odd := [value for value in (*self.image_sizes, *self.micro_batches) if value % 2]:
            raise ValueError(f"image_sizes and micro_batches must be even, and {odd[0]} is not; use {odd[0] + 1}")
        if list(self.image_sizes) != sorted(self.image_sizes):
            raise ValueError(f"image_sizes={list(self.image_sizes)} must not fall from stage to stage")
        return self


class RunConfig(Section):
    """A whole run."""

    seed: Annotated[Integer, Field(ge=0)] = 0
    epochs: Annotated[Integer, Field(gt=0, le=100_000)] = 300
    model: ModelConfig = ModelConfig()
    expansion: ExpansionConfig | None = None
    curriculum: CurriculumConfig | None = None
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    token_labels: TokenLabelsConfig | None = None
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.checkpoint.best_metric == "ema_top1" and self.train.ema_decay is None:
            raise ValueError(
                "checkpoint.best_metric: ema_top1 needs an averaged model; set train.ema_decay, or use val_top1"
            )
        if self.schedule.cooldown_epochs >= self.epochs:
            raise ValueError(
                f"schedule.cooldown_epochs: {self.schedule.cooldown_epochs} of {self.epochs} epochs leave none for the "
                f"cosine; use at most {self.epochs - 1}"
            )
        if self.curriculum is not None and self.curriculum.image_sizes[-1] != self.model.image_size:
            raise ValueError(
                f"curriculum.image_sizes: the last one, {self.curriculum.image_sizes[-1]}, must be model.image_size, "
                f"{self.model.image_size}, at which images are loaded and the run ends"
            )
        if self.curriculum is not None and self.curriculum.budget_epochs is not None:
            self._require_equal_compute(self.curriculum, self.curriculum.budget_epochs)
        if self.curriculum is not None and self.token_labels is not None:
            raise ValueError(
                "curriculum: its crop of frequencies has no place for token labels; set one of them to null"
            )
        if self.schedule.unit == "step" and self.schedule.cooldown_epochs:
            raise ValueError(
                f"schedule.cooldown_epochs: {self.schedule.cooldown_epochs} needs schedule.unit=epoch: by step the "
                "cosine reaches the run's end; use 0"
            )
        if self.token_labels is not None and self.data.kind != "image_folder":
            raise ValueError(
                f"token_labels: {self.data.kind} has no files that label files could be named after; use "
                "data.kind=image_folder, or token_labels=null"
            )
        if self.token_labels is not None and self.augment.on_device:
            raise ValueError("augment.on_device: token labels move with the image on the host; set it to false")
        if self.token_labels is not None and (self.augment.mixup or self.augment.cutmix):
            raise ValueError(
                "token_labels: images with them are mixed by MixToken, in the model; set augment.mixup=0 and "
                "augment.cutmix=0"
            )
        return self

    def _require_equal_compute(self, section: CurriculumConfig, budget: int) -> None:
        if self.schedule.unit != "step":
            raise ValueError(
                "curriculum.budget_epochs: its stages have schedules of their own, by step; set schedule.unit=step"
            )
        if self.schedule.warmup_epochs >= budget:
            raise ValueError(
                f"schedule.warmup_epochs: {self.schedule.warmup_epochs} of curriculum.budget_epochs={budget} leave "
                f"none for the cosine; use at most {budget - 1}"
            )
        try:
            last = equal_compute_stages(budget, section.image_sizes, self.schedule.warmup_epochs)[-1]
        except ValueError as error:
            raise ValueError(f"curriculum.{error}") from None
        if self.epochs != last.first + last.epochs:
            raise ValueError(
                f"epochs: {self.epochs} must be those of the curriculum's stages; curriculum.budget_epochs={budget} "
                f"needs epochs={last.first + last.epochs}"
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate at the top of the schedule, scaled by the batch (DeiT main.py: lr * batch / 512)."""
        if self.optim.lr_base_batch is None:
            return self.optim.lr
        return self.optim.lr * self.train.global_batch / self.optim.lr_base_batch


def section_of(annotation: Any) -> type[Section] | None:
    """The section class behind a field's annotation (`ExpansionConfig | None` counts), or None for a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None
