"""Rules between what a run learns and its other sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toe_train.recipes.fields import AUTO

if TYPE_CHECKING:
    from toe_train.recipes.schema import RunConfig

METRICS = {"classification": ("val_top1", "ema_top1"), "detection": ("val_ap", "ema_ap")}


def task_has_its_sections(config: RunConfig) -> None:
    """Token labels and their task, images with boxes and theirs, belong together."""
    kind = config.task.kind
    if kind == "token_labelling" and config.token_labels is None:
        raise ValueError("task.kind: token_labelling needs label files; set token_labels.root")
    if kind == "detection" and config.token_labels is not None:
        raise ValueError("token_labels: they are of classes, and task.kind=detection learns boxes; set one of them")
    if (kind == "detection") != (config.data.kind == "coco"):
        raise ValueError(
            f"task.kind: {kind} does not go with data.kind={config.data.kind}: boxes come with data.kind=coco, and are "
            "learned by task.kind=detection"
        )


def task_has_its_metric(config: RunConfig) -> None:
    """The best checkpoint goes by a score that the task has."""
    legal = METRICS["detection" if config.task.kind == "detection" else "classification"]
    if config.checkpoint.best_metric not in legal:
        raise ValueError(
            f"checkpoint.best_metric: {config.checkpoint.best_metric} is no score of this task; use {legal[0]}, or "
            f"{legal[1]} with averaged weights"
        )


def detection_trains_plainly_or_expands(config: RunConfig) -> None:
    """What is not made for detection tokens, or for images of many sizes."""
    if config.task.kind != "detection":
        if not isinstance(config.model.image_size, int):
            raise ValueError(
                f"model.image_size: {list(config.model.image_size)} is for task.kind=detection; others see squares: "
                f"use {min(config.model.image_size)}"
            )
        return
    if config.method is not None:
        raise ValueError(
            f"method: {config.method.kind} does not know detection tokens; use expansion for Token Expansion, or "
            "method=null"
        )
    if config.curriculum is not None:
        raise ValueError("curriculum: images of task.kind=detection have many sizes already; set curriculum=null")
    if config.augment.on_device:
        raise ValueError("augment.on_device: boxes move with the image on the host; set it to false")
    if config.train.compile:
        raise ValueError("train.compile: every size of images would make graphs of its own; set train.compile=false")


def batches_divide(config: RunConfig) -> None:
    """A global batch is made of whole groups of one size."""
    same, batch = config.detection.same_size, config.global_batch
    if config.task.kind == "detection" and config.train.global_batch == AUTO:
        raise ValueError(
            f"train.global_batch: auto is for images with a class each; for task.kind=detection give a number: {same}"
        )
    if config.task.kind == "detection" and not config.detection.padding and batch % same:
        near = batch // same * same
        either = f"{near} or {near + same}" if near else str(same)
        raise ValueError(
            f"detection.same_size: {same} images have one size, and train.global_batch={batch} is no multiple of it; "
            f"use train.global_batch={either}"
        )


TASK_CHECKS = (
    task_has_its_sections,
    task_has_its_metric,
    detection_trains_plainly_or_expands,
    batches_divide,
)
