"""What of a run can be wrong before anything is made: its place, its data, and all that is built of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from toe_train import data
from toe_train.build.classes import class_weights
from toe_train.build.inputs import (
    Images,
    batch_layout,
    build_eval_transform,
    build_train_transform,
    check_data,
    list_images,
    of_data,
    patch_side,
)
from toe_train.build.model import build_model, load_initial, require_resizable, require_whole_in_the_end
from toe_train.build.resume import belonging, resume_point
from toe_train.build.step import build_step
from toe_train.build.task import build_task
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, config_at, curriculum_stages, plan_epochs
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.folder import RunFolder
from toe_train.runs.processes import Processes


def begins(folder: RunFolder, resume: str) -> bool:
    """Whether a run starts from new or initial weights, and not from a checkpoint of its own."""
    return resume == "never" or (resume == "auto" and not Checkpoints(folder.checkpoints).last.exists())


def require_place(config: RunConfig, folder: RunFolder, resume: str) -> None:
    """What of a run's folder and of the checkpoint that it is to resume from can be wrong, before anything is made.

    Raises:
        UserError: the folder cannot be used, or the checkpoint that `resume` names (auto and never name none).
    """
    require_outside_data(config, folder)
    folder.require_usable()
    if resume != "never":
        folder.require_checkpoints()
    if resume not in ("auto", "never"):
        images = list_images(config)
        resume_point(Checkpoints(folder.checkpoints), resume, belonging(of_data(config, images), images))


def require_outside_data(config: RunConfig, folder: RunFolder) -> None:
    """Refuses a run folder among the classes of the run's own data.

    Raises:
        UserError: it lies there.
    """
    is_folder = config.data.kind == "image_folder"
    if is_folder or (config.data.kind == "list" and None in (config.data.train_list, config.data.val_list)):
        data.require_outside(folder.root, config.data.root)


def dry_build(
    config: RunConfig, world_size: int, images: Images | None = None, *, begins: bool
) -> tuple[Images, str | None]:
    """Builds what can be wrong, initial weights where it `begins`; the images, and what was done to the weights.

    Raises:
        UserError: what is.
    """
    if images is None:
        check_data(config)
        images = list_images(config)
    config, (train_images, _) = of_data(config, images), images
    classes = train_images.classes
    return images, build_parts(config, world_size, len(classes), classes if begins else None, train_images)


def build_parts(
    config: RunConfig,
    world_size: int,
    num_classes: int,
    initial_for: Sequence[str] | None = None,
    images: data.ImageSource | None = None,
) -> str | None:
    """Builds all parts of a run; what was done to its initial weights.

    Args:
        config: the run.
        world_size: number of processes that it would have.
        num_classes: width of the classifier.
        initial_for: names of the classes, where the run's initial weights are to be tried too.
        images: to train on, where their order is to be tried too.

    Raises:
        UserError: what of the configuration cannot be.
    """
    stages, started_from = curriculum_stages(plan_epochs(config)), None
    alone = Processes(0, world_size, torch.device("cpu"))
    require_resizable(config, [plan.image_size for plan in stages])
    require_whole_in_the_end(config)
    for plan in stages:
        now, size = config_at(config, plan), plan.image_size
        build_train_transform(now, plan.loaded_size)
        build_eval_transform(config, plan.loaded_size)
        layout = batch_layout(now, world_size)
        built = build_model(now, num_classes, size)
        _require_seeds(now)
        if initial_for is not None:
            started_from = load_initial(config, built, list(initial_for))
        weights = None if images is None else class_weights(config, images)
        task = build_task(now, built, num_classes, layout, class_weights=weights)
        if images is not None:
            task.order(images, config.global_batch, config.seed, config.augment.repeats, config.data.sampling)
        build_step(now, built, task, layout, alone, size, plan.frozen)
    return started_from


def _require_seeds(config: RunConfig) -> None:
    """Refuses images with boxes that may have too few patches for a stage.

    The smallest are square, or so long that `longest_side` leaves them one row of patches; rounding may then take a
    third of that side (`data.BoxAugmentation`).
    """
    if config.task_kind != "detection" or config.expansion is None:
        return
    section, patch, schedule = config.detection, patch_side(config), config.expansion.schedule()
    longest = section.longest_side
    side = min(*section.short_sides, longest or max(section.short_sides))
    least = {f"detection.short_sides: the smallest images have {side} x {side} pixels": (side, side)}
    if longest is not None:
        narrow = 2 * longest // 3
        least[f"detection.longest_side: a very long image may have {patch} x {narrow} pixels"] = patch, narrow
    for said, sides in least.items():
        rows, columns = (max(1, one // patch) for one in sides)
        try:
            for stage in range(1, schedule.num_stages + 1):
                schedule.num_kept(stage, rows * columns)
        except ValueError as error:
            raise UserError(f"{said} in patches of {patch}, and expansion.{error}") from None
