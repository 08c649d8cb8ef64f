"""What TensorBoard shows of a run: the tokens that its method keeps of a few images, where a stage begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from toe_train import data
from toe_train.build.inputs import Images, build_eval_transform, build_finish, build_train_transform
from toe_train.build.model import BuiltModel
from toe_train.methods.pictures import kept_token_pictures
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.recipes import EpochPlan, RunConfig, side_of
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task
from toe_train.tasks.token_labelling import token_targets
from toe_train.training.compiling import uncompiled

PICTURES = 8  # images that are shown

Pictures = Callable[[EpochPlan], Mapping[str, Tensor]]


def build_pictures(
    config: RunConfig,
    plans: tuple[EpochPlan, ...],
    plan: EpochPlan,
    built: BuiltModel,
    task: Task,
    images: Images,
    skipped: data.SkippedImages | None,
    processes: Processes,
) -> Pictures:
    """What an epoch's begin shows, by name: what ToE keeps, in the epochs with which a stage begins.

    Args:
        config: that of the stage of the curriculum.
        plans: of the run.
        plan: of the trainer's first epoch.
        built: the model.
        task: that it learns.
        images: train and val.
        skipped: where unreadable ones are noted.
        processes: of which the main one draws.
    """
    method = built.method
    if not isinstance(method, TokenExpansionMethod) or not processes.is_main or config.task_kind == "detection":
        return lambda now: {}
    shown, targets = _chosen(config, plan, built, task, images, skipped)
    noise = torch.rand(len(shown), built.num_tokens, generator=data.generator(config.seed, "pictures"))
    draw = partial(
        kept_token_pictures,
        built.model,
        method.expansion,
        shown.to(processes.device),
        built.grid,
        config.augment.mean,
        config.augment.std,
        noise=noise.to(processes.device),
        patch_targets=None if targets is None else targets.to(processes.device),
    )

    def pictures(now: EpochPlan) -> Mapping[str, Tensor]:
        former = plans[now.epoch - 1].stage if now.epoch else None
        if now.stage == former:
            return {}
        with uncompiled():
            return {"kept_tokens": draw()}

    return pictures


def _chosen(
    config: RunConfig,
    plan: EpochPlan,
    built: BuiltModel,
    task: Task,
    images: Images,
    skipped: data.SkippedImages | None,
) -> tuple[Tensor, Tensor | None]:
    """Images as the model sees them, and their patches' targets where the task has such.

    With token labels they are training images, which alone have labels, as the first epoch may show them.
    """
    train_images, val_images = images
    labels = config.token_labels
    count = len(val_images) if labels is None else len(train_images)
    chosen = range(0, count, max(1, count // PICTURES))[:PICTURES]
    if labels is None:
        eval_set = task.eval_set(val_images, build_eval_transform(config, plan.loaded_size), skipped)
        whole = torch.stack([eval_set[index][0] for index in chosen])
        return data.low_frequency_crop(whole, side_of(plan.image_size)), None
    transform = build_train_transform(config, plan.loaded_size)
    train_set = task.train_set(train_images, transform, config.seed, skipped)
    pixels, (scores, ids, crop, _) = task.collate([train_set[data.SampleKey(index, 0, index)] for index in chosen])
    of_patches = token_targets(scores, ids, crop, len(train_images.classes), built.grid, 0.0, labels.alignment)[1]
    return build_finish(config)(pixels), of_patches
