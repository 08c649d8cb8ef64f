"""What a configuration gives a step to train on: data sets, transforms, the split of the batch, images, mixing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toe_train import data, models
from toe_train.data.transforms import Transform
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.training.build_model import BuiltModel
from toe_train.training.distributed import Processes

PUBLISHED_MAP = (5, 18, 18)  # candidate classes, rows and columns of the published label files


def check_data(config: RunConfig) -> None:
    """The start-up check of the data set, downloaded first where the run says so; one process does it for all."""
    section, labels = config.data, config.token_labels
    if section.download:
        data.open_datasets(section.kind, section.root, download=True)
    # Where unreadable images are to be passed over, they are not looked for.
    sample = section.check_sample if section.on_error == "fail" else 0
    data.require_healthy(
        section.kind,
        section.root,
        sample=sample,
        label_root=labels.root if labels else None,
        label_geometry=labels.geometry if labels else "full",
    )


def batch_layout(config: RunConfig, world_size: int, largest: int | None = None) -> data.BatchLayout:
    """How the global batch is cut for `world_size` processes, in micro-batches of at most `largest` images too."""
    limit = min(config.train.max_micro_batch, largest or config.train.max_micro_batch)
    accumulation = data.split_batch(config.train.global_batch, world_size, limit)
    return data.BatchLayout(config.train.global_batch, config.augment.mix_group, world_size, accumulation)


def describe_split(layout: data.BatchLayout) -> str:
    """The split of the global batch in words."""
    return (
        f"global batch {layout.global_batch} = {layout.world_size} process{'es' * (layout.world_size > 1)} x "
        f"{layout.accumulation} accumulation x {layout.micro_batch} images"
    )


def build_train_set(
    config: RunConfig, images: data.ImageSource, skipped: data.SkippedImages | None, loaded_size: int | None = None
) -> data.TrainSet:
    """Augmented training images, with label maps where the run has token labels; size as `build_train_transform`."""
    transform = build_train_transform(config, loaded_size)
    if config.token_labels is None:
        return data.TrainSet(images, transform, config.seed, skipped)
    joint = data.JointTransform(transform, config.token_labels.geometry)
    files = data.TokenLabelFiles(Path(config.token_labels.root), images.classes)
    return data.TrainSet(images, joint, config.seed, skipped, files)


def build_train_transform(config: RunConfig, loaded_size: int | None = None) -> Any:
    """Training transform of the `augment` section, brought down to `loaded_size` where that is smaller.

    It ends in what the loader hands over: `Pixels`, or with `augment.on_device` views to be made of an image.
    """
    section = config.augment
    handing_over = data.DrawView if section.on_device else data.ending_in_pixels
    try:
        return handing_over(build_timm_transform(config, loaded_size))
    except UserError as error:
        raise UserError(f"augment.{error}") from None


def build_timm_transform(config: RunConfig, loaded_size: int | None = None) -> Any:
    """The same up to normalised and erased float32 images, as timm's own loader takes it."""
    section = config.augment
    return data.train_transform(
        image_size=config.model.image_size,
        order=section.order,
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
        downsampled=loaded_size,
    )


def build_eval_transform(config: RunConfig, size: int | None = None) -> Transform:
    """Evaluation transform of the `evaluate` section; `size` in place of `model.image_size`."""
    return data.eval_transform(
        image_size=size or config.model.image_size,
        crop_pct=config.evaluate.crop_pct,
        interpolation=config.evaluate.interpolation,
        mean=config.augment.mean,
        std=config.augment.std,
    )


def build_val_batches(config: RunConfig, eval_set: data.EvalSet, processes: Processes) -> data.CleanErrors:
    """This process's share of the val images."""
    indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
    pin = processes.device.type == "cuda"
    return data.eval_loader(eval_set, indices, config.evaluate.batch, config.data.workers, pin)


def build_finish(config: RunConfig, image_size: int | None = None) -> Callable[[data.Pixels | data.Views], Tensor]:
    """What makes a model's images of the loader's: normalised, erased, and at a smaller `image_size` cropped.

    The crop of frequencies leaves images that have that size alone.
    """
    section, size = config.augment, image_size or config.model.image_size

    def finish(shown: data.Pixels | data.Views) -> Tensor:
        pixels = data.made(shown) if isinstance(shown, data.Views) else shown
        return data.low_frequency_crop(data.normalized(pixels, section.mean, section.std), size)

    return finish


def build_mixing(
    config: RunConfig, built: BuiltModel, num_classes: int, layout: data.BatchLayout
) -> Callable[..., tuple[Tensor, Any]]:
    """Mixup and CutMix of the `augment` section, or MixToken and the targets of a run with token labels."""
    section = config.augment
    if config.token_labels is None:
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
    model: Any = built.model

    def hand_over(boxes: Tensor, partners: Tensor) -> None:
        model.given_mix = models.TokenMix(boxes, partners)

    return data.TokenMixing(
        num_classes,
        built.grid,
        section.smoothing,
        config.token_labels.alignment,
        config.seed,
        layout,
        draw_box=partial(models.draw_box, built.grid),
        hand_over=hand_over,
    )


def example_batch(config: RunConfig, batch: int, loaded_size: int | None = None) -> tuple[data.Pixels, Any]:
    """Made-up images and labels in the shapes in which the loader gives `batch` of them, on the CPU."""
    size = loaded_size or config.model.image_size
    labels = torch.zeros(batch, dtype=torch.int64)
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, generator=source)
    images = data.Pixels(pixels, torch.empty(0, 5, dtype=torch.int64), torch.empty(0))
    if config.token_labels is None:
        return images, labels
    scores = torch.zeros(batch, *PUBLISHED_MAP, dtype=torch.float16)
    crop = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(batch, 1)
    return images, data.TokenTarget(scores, scores.to(torch.int16), crop, labels)
