"""The task of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from toe_train import data
from toe_train.build.model import BuiltModel
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.tasks.box_detection import BoxDetection
from toe_train.tasks.classification import BatchMixing, Classification
from toe_train.tasks.task import Task
from toe_train.tasks.token_labelling import TokenLabelling


def finds_boxes(model: nn.Module) -> bool:
    """Whether a model gives boxes and their logits."""
    return hasattr(model, "bbox_embed")


def build_task(
    config: RunConfig,
    built: BuiltModel,
    num_classes: int,
    layout: data.BatchLayout,
    average: Callable[[Tensor], Tensor] = lambda values: values,
    class_weights: Tensor | None = None,
) -> Task:
    """What the run learns, with its model and its split of the batch.

    average: gives the mean of a tensor over the processes that train together; by default this one trains alone.
    class_weights: see `classes.class_weights`.

    Raises:
        UserError: token labels for a model without an output for each patch, or such a model without token labels.
    """
    augment, name = config.augment, config.model.name
    if finds_boxes(built.model) != (config.task_kind == "detection"):
        raise UserError(
            f"model.name = {name}: does not go with task.kind={config.task_kind}; detection takes yolos_tiny, "
            "yolos_small, yolos_small_dwr or yolos_base, and no other task does"
        )
    if config.task_kind == "detection":
        group = 1 if config.detection.padding else config.detection.same_size
        return BoxDetection(augment.mean, augment.std, group, layout.accumulation, average)
    if config.task_kind == "classification":
        if built.is_dense:
            raise UserError(
                f"model.name = {name}: has an output for each patch, which token_labels train, and the run has none; "
                "set token_labels.root, or model.kwargs.dense=false to train the class head alone"
            )
        mixing = BatchMixing(
            num_classes,
            augment.mixup,
            augment.cutmix,
            augment.mix_prob,
            augment.mix_switch_prob,
            augment.smoothing,
            config.seed,
            layout,
        )
        if class_weights is not None:
            class_weights = class_weights.to(next(built.model.parameters()).device)
        return Classification(mixing, class_weights)
    if not built.is_dense:
        raise UserError(
            f"model.name = {name}: has no output for each patch, which token_labels train; use lvvit_t, lvvit_s or "
            "lvvit_m (without model.kwargs.dense=false), or token_labels=null"
        )
    section = config.token_labels
    assert section is not None
    return TokenLabelling(
        built.model,
        built.grid,
        num_classes,
        augment.smoothing,
        section.alignment,
        config.seed,
        layout,
        Path(section.root),
        section.geometry,
        section.dense_weight,
        section.cls_weight,
        built.method.counted,
    )
