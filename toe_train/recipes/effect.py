"""Keys that a user gave and that change nothing in this run: refused, with what would make them count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toe_train.recipes.compare import essential
from toe_train.recipes.detection import DetectionConfig
from toe_train.recipes.fields import HF, NEW, TIMM, TIMM_OR_NEW
from toe_train.recipes.schema import RunConfig


@dataclass(frozen=True)
class Rule:
    """Keys that have no effect in some runs.

    Attributes:
        keys: dotted.
        idle: whether a run is one of those.
        why: what it is in the run that overrules them, and what makes them count.
    """

    keys: tuple[str, ...]
    idle: Callable[[RunConfig], bool]
    why: str


def without_effect(config: RunConfig, given: Iterable[str]) -> dict[str, str]:
    """Of the dotted keys that were `given`, those that change nothing in this run, and why."""
    found: dict[str, str] = {}
    for rule in RULES:
        for key in rule.keys:
            if key in given and rule.idle(config):
                found.setdefault(key, rule.why)
    return found


def read_values(config: RunConfig) -> dict[str, Any]:
    """A dumped configuration of what decides what is learned and is read in this run, unlike `RULES` of idle keys."""
    values = essential(config.model_dump(mode="json"))
    for rule in RULES:
        for key in rule.keys if rule.idle(config) else ():
            section, name = key.split(".")
            (values.get(section) or {}).pop(name, None)
    return values


def _jitters(config: RunConfig) -> bool:
    """Whether some epoch has colour jitter, which timm leaves out beside RandAugment unless that says t3a."""
    section = config.curriculum
    used = section.rand_augments if section else (config.augment.rand_augment,)
    return any(text is None or "t3a" in text.split("-") for text in used)


def _compares_tokens(config: RunConfig) -> bool:
    section = config.expansion
    return section is None or section.expansion == "farthest" or section.merging


def _is(run: RunConfig, kind: str) -> bool:
    return run.method is not None and run.method.kind == kind


def _counts(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


# Of images that have a class: what training and evaluation do to them.
OF_CLASSES = (
    *(f"augment.{key}" for key in ("order", "crop", "crop_scale", "crop_ratio", "interpolation")),
    *(f"augment.{key}" for key in ("rand_augment", "color_jitter", "erasing_prob", "erasing_mode", "erasing_count")),
    *(f"augment.{key}" for key in ("mixup", "cutmix", "mix_prob", "mix_switch_prob", "mix_group", "smoothing")),
    "evaluate.crop_pct",
    "evaluate.interpolation",
)
OF_BOXES = tuple(f"detection.{key}" for key in DetectionConfig.model_fields)
OF_COCO = tuple(f"data.{split}_{key}" for split in ("train", "val") for key in ("folder", "annotations"))

RULES = (
    Rule(
        OF_CLASSES,
        lambda run: run.task_kind == "detection",
        "images with boxes are flipped, resized and cut as the section detection says",
    ),
    Rule(
        ("task.kind",),
        lambda run: run.task.kind == "classification" and run.token_labels is not None,
        "token labels ask for the task token_labelling; set token_labels=null",
    ),
    Rule(
        ("task.class_weights",),
        lambda run: run.task.class_weights is not None and run.task_kind != "classification",
        "it is of task.kind=classification; set it to null",
    ),
    Rule(
        ("data.sampling",),
        lambda run: run.data.sampling == "balanced" and run.task_kind == "detection",
        "an image with boxes has no one class; set data.sampling=shuffled",
    ),
    Rule(
        ("detection.head_bias_decay",),
        lambda run: run.optim.layer_decay is not None,
        "layers have groups of their own with optim.layer_decay; set optim.layer_decay=null",
    ),
    Rule(OF_BOXES, lambda run: run.task_kind != "detection", "it is of boxes; set task.kind=detection"),
    Rule(OF_COCO, lambda run: run.data.kind != "coco", "it is of COCO's files; set data.kind=coco"),
    Rule(
        ("detection.same_size",),
        lambda run: run.detection.padding,
        "images of any size stand together with detection.padding=true; set it to false",
    ),
    Rule(
        ("train.max_micro_batch",),
        lambda run: (
            run.task_kind == "detection"
            and not run.detection.padding
            and run.train.max_micro_batch > run.detection.same_size
        ),
        "a micro-batch holds images of one size, detection.same_size of them at most; raise that to it too",
    ),
    Rule(
        ("detection.crop_from", "detection.crop_sides"),
        lambda run: run.detection.crop_prob == 0,
        "nothing is cut with detection.crop_prob=0; set it above 0",
    ),
    Rule(
        ("data.on_error", "data.max_skipped", "data.check_sample"),
        lambda run: run.data.kind in ("cifar10", "cifar100", "digits"),
        "it is of image files, which may be unreadable; set data.kind=image_folder",
    ),
    Rule(
        ("data.exif_orientation",),
        lambda run: not run.data.of_files,
        "it is of image files; set data.kind=image_folder",
    ),
    Rule(
        ("data.train_list", "data.val_list"),
        lambda run: run.data.kind not in ("tar", "list"),
        "folders say the classes; set data.kind=list",
    ),
    Rule(("data.label_key",), lambda run: run.data.kind != "tar", "it is of shards; set data.kind=tar"),
    Rule(
        ("data.relist",),
        lambda run: run.data.relist and not run.data.of_files,
        "nothing is listed but image files; set data.kind=image_folder",
    ),
    Rule(
        ("method.source",),
        lambda run: _is(run, "depth_growth") and getattr(run.method, "copy") == "double",  # noqa: B009
        "copy=double copies raw weights; set method.copy=insert or stack",
    ),
    Rule(
        ("method.r",),
        lambda run: _is(run, "token_merging") and not any(_counts(getattr(run.method, "r"))),  # noqa: B009
        "nothing is merged with method.r=0; set it above 0, or method=null",
    ),
    Rule(
        ("method.update_every", "method.death_rate", "method.revive"),
        lambda run: _is(run, "structured_sparsity") and getattr(run.method, "update_until") == 0,  # noqa: B009
        "no part is exchanged with method.update_until=0; set it above 0",
    ),
    Rule(
        ("method.drop_path",),
        lambda run: _is(run, "depth_growth") and run.model.drop_path == 0,
        "no path is dropped with model.drop_path=0; set it above 0",
    ),
    Rule(
        ("augment.rand_augment",),
        lambda run: run.curriculum is not None,
        "each stage of the curriculum has its own; set curriculum.rand_augments, or curriculum=null",
    ),
    Rule(
        ("augment.mix_group",),
        lambda run: run.curriculum is not None,
        "each stage of the curriculum has its own; set curriculum.micro_batches, or curriculum=null",
    ),
    Rule(
        ("augment.color_jitter",),
        lambda run: not _jitters(run),
        "timm leaves it out beside RandAugment; set augment.rand_augment=null",
    ),
    Rule(
        ("augment.crop_scale", "augment.crop_ratio"),
        lambda run: run.augment.crop == "padded",
        "augment.crop=padded does without; set augment.crop=random_resized",
    ),
    Rule(
        ("augment.erasing_mode", "augment.erasing_count"),
        lambda run: run.augment.erasing_prob == 0,
        "nothing is erased with augment.erasing_prob=0; set it above 0",
    ),
    Rule(
        ("augment.mix_prob",),
        lambda run: not run.augment.mixup and not run.augment.cutmix,
        "it is of Mixup and CutMix, and both are off; set augment.mixup or augment.cutmix above 0",
    ),
    Rule(
        ("augment.mix_switch_prob",),
        lambda run: not run.augment.mixup or not run.augment.cutmix,
        "it chooses between Mixup and CutMix; set augment.mixup and augment.cutmix above 0",
    ),
    Rule(("optim.momentum",), lambda run: run.optim.name == "adamw", "it is of sgd and muon; set optim.name=sgd"),
    Rule(("optim.betas", "optim.eps"), lambda run: run.optim.name == "sgd", "it is of adamw; set optim.name=adamw"),
    Rule(
        ("train.ema_warmup",),
        lambda run: run.train.ema_warmup and run.train.ema_decay is None,
        "no weights are averaged with train.ema_decay=null; set it, such as 0.9999",
    ),
    Rule(
        ("schedule.stepping",),
        lambda run: run.schedule.unit == "step",
        "it is of rates by epoch; set schedule.unit=epoch",
    ),
    Rule(
        ("schedule.warmup_lr",),
        lambda run: run.schedule.warmup_epochs == 0,
        "there is no warm-up with schedule.warmup_epochs=0; set it above 0",
    ),
    Rule(
        ("expansion.metric",),
        lambda run: not _compares_tokens(run),
        "no tokens are compared without merging and farthest expansion; set expansion.merging=true or "
        "expansion.expansion=farthest",
    ),
    Rule(
        ("expansion.repeats",),
        lambda run: run.expansion is not None and run.expansion.expansion != "farthest",
        "tokens are chosen in one go; set expansion.expansion=farthest",
    ),
    Rule(
        ("expansion.restore",),
        lambda run: run.token_labels is None,
        "it is of outputs for each patch, which token labels train; set token_labels.root",
    ),
    Rule(
        ("model.initial_averaged",),
        lambda run: run.model.initial_averaged and run.model.initial_weights in (None, TIMM, TIMM_OR_NEW, NEW),
        "it is of a checkpoint of toe-train; set model.initial_weights to one",
    ),
    Rule(
        ("model.initial_weights",),
        lambda run: run.model.initial_weights == NEW and not run.model.name.startswith(HF),
        "only a model of transformers has weights of its own; set model.initial_weights=null for new ones",
    ),
    Rule(
        ("data.root",),
        lambda run: run.data.kind == "digits",
        "data.kind=digits has its images with it; set data.kind=image_folder for your own",
    ),
    Rule(
        ("data.download",),
        lambda run: run.data.download and run.data.kind not in ("cifar10", "cifar100"),
        "CIFAR alone is downloaded; set data.kind=cifar10 or cifar100",
    ),
    Rule(
        ("data.max_skipped",),
        lambda run: run.data.on_error == "fail",
        "no image is passed over with data.on_error=fail; set data.on_error=skip",
    ),
    Rule(
        ("data.check_sample",),
        lambda run: run.data.on_error == "skip" and run.data.check_sample > 0,
        "images are not tried before the run with data.on_error=skip; set data.on_error=fail",
    ),
)
