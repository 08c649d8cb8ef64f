"""What a configuration gives a run to read: data sets, transforms, the split of the batch, loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toe_train import data
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, Size, of_images, side_of, sides_of
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.inputs import Inputs

Images = tuple[data.ImageSource, data.ImageSource]  # train, val


def check_data(config: RunConfig) -> None:
    """The start-up check of the data set, downloaded first where the run says so; one process does it for all."""
    section, labels = config.data, config.token_labels
    if section.download:
        list_images(config, download=True)
    # Where unreadable images are to be passed over, they are not looked for.
    sample = section.check_sample if section.on_error == "fail" else 0
    data.require_healthy(
        section.kind,
        section.root,
        sample=sample,
        label_root=labels.root if labels else None,
        label_geometry=labels.geometry if labels else "full",
        exif_orientation=section.exif_orientation,
        labelling=labelling(config),
        anew=section.relist,
    )


def labelling(config: RunConfig) -> data.Labelling | data.CocoPlaces:
    """Where the labels of image files are, if not in the names of folders."""
    section = config.data
    if section.kind == "coco":
        return data.CocoPlaces(
            section.train_folder, section.val_folder, section.train_annotations, section.val_annotations
        )
    return data.Labelling(section.train_list, section.val_list, section.label_key)


def list_images(config: RunConfig, download: bool = False) -> Images:
    """Train and val images, listed by this process; what is remembered of them serves, as the check renews it."""
    section = config.data
    return data.open_datasets(section.kind, section.root, download, section.exif_orientation, labelling(config))


def of_data(config: RunConfig, images: Images) -> RunConfig:
    """The run with what follows the number of its training images."""
    return of_images(config, len(images[0]))


def open_images(config: RunConfig, processes: Processes) -> Images:
    """Train and val images, listed by the main process and handed to the others; all call it together.

    What was passed over is said.

    Raises:
        UserError: an image is not there in some process.
        RunFailed: a process may not open as many files as its loader processes need.
    """
    section = config.data
    processes.together(lambda: data.require_open_files(section.workers))
    images = processes.from_main(lambda: list_images(config))
    for source in images:
        processes.together(source.require_here)
    for line in listing_notes(images) if processes.is_main else []:
        print(line)
    return images


def listing_notes(images: Images) -> list[str]:
    """What was passed over when the images were listed, in words."""
    return [f"note: {line}" for source in images for line in source.notes()]


def batch_layout(config: RunConfig, world_size: int, largest: int | None = None) -> data.BatchLayout:
    """How the global batch is cut for `world_size` processes, in micro-batches of at most `largest` images too."""
    limit = min(config.train.max_micro_batch, largest or config.train.max_micro_batch)
    batch, mixed = config.global_batch, config.mixes_images
    if config.task_kind == "detection":
        accumulation = _split_in_sizes(config, world_size, limit)
        return data.BatchLayout(batch, 1, world_size, accumulation, mixed)
    accumulation = data.split_batch(batch, world_size, limit, mixed)
    return data.BatchLayout(batch, config.augment.mix_group, world_size, accumulation, mixed)


def _split_in_sizes(config: RunConfig, world_size: int, limit: int) -> int:
    """Accumulation steps of micro-batches whose images have one size, or are padded to one."""
    section, batch = config.detection, config.global_batch
    if section.padding:
        return data.split_batch(batch, world_size, limit, mixed=False)
    fitting = [size for size in range(1, min(limit, section.same_size) + 1) if section.same_size % size == 0]
    splits = [data.split_batch(batch, world_size, size, mixed=False) for size in fitting]
    return min(split for split in splits if section.same_size % (batch // world_size // split) == 0)


def describe_split(layout: data.BatchLayout) -> str:
    """The split of the global batch in words."""
    return (
        f"global batch {layout.global_batch} = {layout.world_size} process{'es' * (layout.world_size > 1)} x "
        f"{layout.accumulation} accumulation x {layout.micro_batch} images"
    )


def build_train_transform(config: RunConfig, loaded_size: Size | None = None) -> Any:
    """Training transform of the `augment` section, brought down to `loaded_size` where that is smaller.

    It ends in what the loader hands over: `Pixels`, or with `augment.on_device` views to be made of an image.
    """
    section = config.augment
    if config.task_kind == "detection":
        return _box_augmentation(config)
    handing_over = data.DrawView if section.on_device else data.ending_in_pixels
    try:
        return handing_over(build_timm_transform(config, loaded_size))
    except UserError as error:
        raise UserError(f"augment.{error}") from None


def _box_augmentation(config: RunConfig) -> data.BoxAugmentation:
    section = config.detection
    return data.BoxAugmentation(
        hflip=config.augment.hflip,
        short_sides=section.short_sides,
        longest=section.longest_side,
        crop_prob=section.crop_prob,
        crop_from=section.crop_from,
        crop_sides=section.crop_sides,
        multiple=patch_side(config),
    )


def patch_side(config: RunConfig) -> int:
    """Side in pixels of a patch, of which the sides of images with boxes are multiples.

    Raises:
        UserError: it is no number of pixels.
    """
    side = config.model.kwargs.get("patch_size", 16)
    if not isinstance(side, int) or side < 1:
        raise UserError(f"model.kwargs: patch_size={side!r} must be a whole number of pixels from 1 up, such as 16")
    return side


def build_timm_transform(config: RunConfig, loaded_size: Size | None = None) -> Any:
    """The same up to normalised and erased float32 images, as timm's own loader takes it."""
    section = config.augment
    return data.train_transform(
        image_size=side_of(config.model.image_size),
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
        downsampled=None if loaded_size is None else side_of(loaded_size),
    )


def build_eval_transform(config: RunConfig, size: Size | None = None) -> Any:
    """Evaluation transform of the `evaluate` section; `size` in place of `model.image_size`."""
    if config.task_kind == "detection":
        section = config.detection
        return data.BoxEvaluation(section.eval_short_side, section.eval_longest_side, patch_side(config))
    return data.eval_transform(
        image_size=side_of(size or config.model.image_size),
        crop_pct=config.evaluate.crop_pct,
        interpolation=config.evaluate.interpolation,
        mean=config.augment.mean,
        std=config.augment.std,
    )


def build_sight(config: RunConfig) -> data.Transform:
    """From a PIL RGB image to what the model takes of it in an evaluation."""
    transform = build_eval_transform(config)
    if isinstance(transform, data.BoxEvaluation):
        return data.SceneTransform(transform, config.augment.mean, config.augment.std)
    return transform


def build_finish(config: RunConfig, image_size: Size | None = None) -> Callable[[data.Pixels | data.Views], Tensor]:
    """What makes a model's images of the loader's: normalised, erased, and at a smaller `image_size` cropped.

    The crop of frequencies leaves images that have that size alone.
    """
    section, size = config.augment, image_size or config.model.image_size

    def finish(shown: data.Pixels | data.Views) -> Tensor:
        pixels = data.made(shown) if isinstance(shown, data.Views) else shown
        images = data.normalized(pixels, section.mean, section.std)
        return images if config.task_kind == "detection" else data.low_frequency_crop(images, side_of(size))

    return finish


def build_inputs(
    config: RunConfig,
    plan: EpochPlan,
    task: Task,
    images: Images,
    layout: data.BatchLayout,
    order: data.GlobalOrder,
    processes: Processes,
    skipped: data.SkippedImages | None,
    num_tokens: int,
) -> Inputs:
    """All that a trainer for `plan`'s stage of the curriculum reads; `config` is that of the stage."""
    train_images, val_images = images
    transform = build_train_transform(config, plan.loaded_size)
    train_set = task.train_set(train_images, transform, config.seed, skipped)
    eval_set = task.eval_set(val_images, build_shown(config, plan), skipped)
    sampler = data.TrainBatchSampler(order, layout, processes.rank)
    workers, pin = config.data.workers, processes.device.type == "cuda"
    indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
    return Inputs(
        sampler=sampler,
        train=DeviceBatches(
            data.train_loader(train_set, sampler, workers, pin, task.collate),
            processes.device,
            build_finish(config, plan.image_size),
            task.in_steps,
        ),
        val=data.eval_loader(
            eval_set,
            indices,
            config.evaluate.batch,
            workers,
            pin,
            task.eval_collate,
            task.eval_batches(eval_set, indices, config.evaluate.batch),
        ),
        skipped=skipped,
        sides=sides_of(plan.image_size),
        num_tokens=num_tokens,
    )


def build_shown(config: RunConfig, plan: EpochPlan) -> data.Transform | data.TwoSizes:
    """Transform of the images that are evaluated: in pairs where the loader makes them smaller for training."""
    seen = build_eval_transform(config, plan.loaded_size)
    return data.TwoSizes(seen, build_eval_transform(config)) if loads_pairs(config, plan) else seen


def loads_pairs(config: RunConfig, plan: EpochPlan) -> bool:
    """Whether evaluation images come in two sizes, the model's and the one that the run ends with."""
    return plan.loaded_size != config.model.image_size


def build_skipped(config: RunConfig, path: Path, rank: int = 0) -> data.SkippedImages | None:
    """Where images that cannot be read are listed by a process; None where one ends the run."""
    return data.SkippedImages(path, config.data.max_skipped, rank) if config.data.on_error == "skip" else None


def largest_size(config: RunConfig, loaded_size: Size, micro_batch: int) -> Size:
    """The size of the largest micro-batch's images, where they have many sizes; else `loaded_size`.

    Padding brings an upright and a lying image to a square of the longest sides. Without a `longest_side` images count
    as at most twice as long as they are wide.
    """
    section, patch = config.detection, patch_side(config)
    if config.task_kind != "detection":
        return loaded_size
    longest = section.longest_side or 2 * max(section.short_sides)
    sides = (min(max(section.short_sides), longest), longest)
    short, long = (max(patch, side // patch * patch) for side in sides)
    return (long if section.padding and micro_batch > 1 else short), max(short, long)


def example_batch(
    config: RunConfig, task: Task, batch: int, loaded_size: Size | None = None
) -> tuple[data.Pixels, Any]:
    """Made-up images and targets in the shapes in which the loader gives `batch` of them, on the CPU."""
    sides = sides_of(loaded_size or config.model.image_size)
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, *sides, 3), dtype=torch.uint8, generator=source)
    images = data.Pixels(pixels, torch.empty(0, 5, dtype=torch.int64), torch.empty(0))
    return images, task.example_targets(batch)
