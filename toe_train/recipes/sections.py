"""The sections of the YAML file: one frozen, validated record each. The curriculum's is in `curriculum.py`.

The defaults are the DeiT recipe of the paper's experiments (DeiT `main.py` and `datasets.py` at facebookresearch/deit
7e160fe, with timm 0.9.2); `configs/deit_tiny.yaml` spells out the same values and a test keeps the two equal. Every
field is read somewhere; unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from toe_train.expansion.schedule import Expansion, ExpansionSchedule, Initialization, Metric, Restore
from toe_train.recipes.fields import (
    INCIDENTAL,
    OF_WEIGHTS,
    PATH,
    BelowOne,
    Folder,
    GlobalBatch,
    ImageSize,
    Integer,
    Interpolation,
    ModelName,
    NonNegative,
    Number,
    Positive,
    PositiveInteger,
    Probability,
    Section,
    Weights,
)
from toe_train.recipes.shares import Share


class ModelConfig(Section):
    """The network: a timm name, one of this project's own, or one of transformers."""

    name: ModelName = "deit_tiny_patch16_224"  # or hf: and a folder or name of transformers
    drop_path: BelowOne = 0.1  # the last block's rate; linear from 0 over the blocks
    # Dropout at positions and after every linear layer but qkv (ViT, arXiv 2010.11929): timm's pos_ and proj_drop_rate.
    dropout: BelowOne = 0.0
    image_size: ImageSize = 224  # for detection [height, width], of what plans and benchmarks count with
    # Fine-tuning: a run folder, checkpoint or file of weights, or timm for its pre-trained ones, or timm_or_new, which
    # takes new ones where timm's are not at hand; null for new weights, and for those of an hf: model's own folder, of
    # which `new` takes none.
    initial_weights: Annotated[Weights | None, PATH] = None
    initial_averaged: bool = False  # the averaged weights of the file
    frozen_epochs: Annotated[Integer, Field(ge=0)] = 0  # first ones, in which the head alone trains
    # Passed to the model's constructor as they are, e.g. {patch_size: 4, depth: 6}.
    kwargs: dict[str, Any] = Field(default_factory=dict)
    # Of an hf: model: its config.json, which the run writes down, so that a checkpoint is whole without the folder.
    architecture: Annotated[dict[str, Any] | None, OF_WEIGHTS] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is made with besides its name, its size and its number of classes."""
        return {**self.kwargs, **({"architecture": self.architecture} if self.architecture is not None else {})}

    @field_validator("kwargs")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = {
            "num_classes": "the data set gives it",
            "in_chans": "images are read as RGB",
            "drop_path_rate": "use model.drop_path",
            "pos_drop_rate": "use model.dropout",
            "proj_drop_rate": "use model.dropout",
            "img_size": "use model.image_size",
            "pretrained": "use model.initial_weights",
            "pretrained_cfg": "use model.initial_weights",
            "checkpoint_path": "use model.initial_weights",
            "architecture": "use model.architecture",
        }
        for key in value:
            if key in reserved:
                raise ValueError(f"must not hold {key}: {reserved[key]}")
        return value


class MethodSection(Section):
    """Base of the sections of methods that make training cheaper, and itself that of none.

    What a method needs to plan a run is said here, in functions of integers alone.
    """

    def stage(self, epoch: int) -> int:
        """The method's stage in an epoch (from 0). One model goes through all stages."""
        return 0

    def segment(self, epoch: int) -> int:
        """What a trainer is built for in an epoch (from 0). Where it changes, the run goes on with another trainer."""
        return 0

    def model_kwargs(self, segment: int) -> dict[str, Any]:
        """What a segment's model is built with over `model.kwargs`; nothing where it is the run's own model."""
        return {}

    def is_dense(self, stage: int) -> bool:
        """Whether a stage trains as the plain model does, at its full cost."""
        return True


class ExpansionConfig(MethodSection):
    """Token Expansion; paper section 3. See `TokenExpansion` for what each option does to parity."""

    stage_epochs: tuple[Integer, ...]  # first epoch of each stage
    # In place of stage_epochs, as shares of the run's epochs: [0, 1/3, 2/3]. See `first_epochs`.
    stage_shares: Annotated[tuple[Share, ...] | None, INCIDENTAL] = None
    keep_rates: tuple[Number, ...]  # r_1 ... r_G, kept share of the patch tokens
    initial_keep_rate: Number  # r_0, share of the seeds
    repeats: Annotated[Integer, Field(gt=0, le=1000)] = 2  # k, rounds per stage
    after_block: Annotated[Integer, Field(ge=0)] = 1  # 0 is after the embedding
    metric: Metric = "cosine"
    initialization: Initialization = "spatial"
    expansion: Expansion = "farthest"
    merging: bool = True
    # What stands at dropped positions in a model with an output for each (LV-ViT): zeros, a copy of the token that they
    # were merged into, or nothing that the dense loss counts.
    restore: Restore = "zero"

    @model_validator(mode="after")
    def _legal_schedule(self) -> ExpansionConfig:
        self.schedule()
        return self

    def schedule(self) -> ExpansionSchedule:
        """The stages as the algorithm's own record."""
        return ExpansionSchedule(self.stage_epochs, self.keep_rates, self.initial_keep_rate, self.repeats)

    def stage(self, epoch: int) -> int:
        """Stage of Token Expansion; 0 before the first boundary."""
        return self.schedule().stage(epoch)

    def is_dense(self, stage: int) -> bool:
        """Whether a stage keeps every token."""
        return self.schedule().is_dense(stage)


class AugmentConfig(Section):
    """Training transforms, in the order in which they act (DeiT datasets.py; mixing as DeiT main.py)."""

    order: Literal["deit", "lvvit"] = "deit"  # lvvit: crop after rand_augment, which then sees the whole image
    crop: Literal["random_resized", "padded"] = "random_resized"  # padded: 4 pixels, what DeiT does at 32 x 32
    crop_scale: tuple[Number, Number] = (0.08, 1.0)
    crop_ratio: tuple[Number, Number] = (3 / 4, 4 / 3)
    interpolation: Annotated[Interpolation, OF_WEIGHTS] = "bicubic"
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
    mean: Annotated[tuple[Number, Number, Number], OF_WEIGHTS] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[Positive, Positive, Positive], OF_WEIGHTS] = (0.229, 0.224, 0.225)

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

    root: Annotated[Folder, INCIDENTAL]  # holds <class>/<image>.pt
    geometry: Literal["full", "center_crop"] = "full"  # what part of its image a map covers; see `JointTransform`
    # released: labels from the transposed place of the crop, as the released code takes them.
    alignment: Literal["correct", "released"] = "correct"
    dense_weight: NonNegative = 1.0  # of the patch tokens' loss
    cls_weight: NonNegative = 1.0  # of the class token's


class OptimConfig(Section):
    """Optimiser; no decay on 1-D parameters, biases, positional embedding and class token (timm's rule)."""

    # muon: the matrices of blocks by Muon, all else by AdamW.
    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: Annotated[Number, Field(gt=0, le=1e30)] = 5.0e-4
    lr_base_batch: PositiveInteger | None = 512  # lr is multiplied by the global batch / this; null takes lr as it is
    weight_decay: NonNegative = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # adamw, and what muon leaves to it
    eps: Positive = 1.0e-8  # the same
    momentum: Probability = 0.9  # sgd; muon, whose author takes 0.95
    clip_grad: Positive | None = None  # largest norm of all gradients together
    # Fine-tuning: the rate of a layer over that of the layer after it (BEiT); null for one rate.
    layer_decay: Annotated[Number, Field(gt=0, lt=1)] | None = None


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

    # Images per optimiser step over all processes and accumulation; auto: by the number of training images.
    global_batch: GlobalBatch = 1024
    max_micro_batch: PositiveInteger = 256  # images per process and forward pass, at most
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"  # fp16 needs a GPU; a CPU then runs float32 and says so
    ema_decay: Annotated[Number, Field(gt=0, lt=1)] | None = 0.99996
    ema_warmup: bool = False  # the decay rises to ema_decay over the first steps (timm's ModelEmaV3 with use_warmup)
    compile: Annotated[bool | None, INCIDENTAL] = None  # torch.compile of the training step; null: on a GPU
    log_every: Annotated[PositiveInteger, INCIDENTAL] = 50  # steps between lines of the run log
    # A step whose gradients are not finite is left out; after more than so many in a row the run goes back to its last
    # checkpoint, so many times in all, and on in another order of the images.
    max_skipped_steps: Annotated[Integer, Field(ge=0, le=1000), INCIDENTAL] = 10
    max_rollbacks: Annotated[Integer, Field(ge=0), INCIDENTAL] = 3


class EvaluateConfig(Section):
    """Validation: always the plain model with all tokens."""

    every_epochs: Annotated[PositiveInteger, INCIDENTAL] = 1  # the last epoch is always evaluated
    batch: Annotated[PositiveInteger, INCIDENTAL] = 256  # images per process
    crop_pct: Annotated[Number, Field(ge=0.1, le=1), OF_WEIGHTS] = 0.875
    interpolation: Annotated[Literal["bicubic", "bilinear", "nearest", "lanczos"], OF_WEIGHTS] = "bicubic"


class CheckpointConfig(Section):
    """What is written to `checkpoints/`."""

    # The last epoch is always saved, and the last of each stage.
    every_epochs: Annotated[PositiveInteger, INCIDENTAL] = 1
    # Within an epoch too, at multiples of so many steps.
    every_steps: Annotated[PositiveInteger | None, INCIDENTAL] = None
    # Within an epoch too, so many minutes after the last one.
    every_minutes: Annotated[Positive | None, INCIDENTAL] = 15.0
    best_metric: Annotated[Literal["val_top1", "ema_top1", "val_ap", "ema_ap"], INCIDENTAL] = "val_top1"
