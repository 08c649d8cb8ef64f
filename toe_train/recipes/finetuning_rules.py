"""Rules between the first epochs of a fine-tuning, in which the head alone trains, and the other sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toe_train.recipes.fields import HF, NEW, TIMM_OR_NEW
from toe_train.recipes.methods import DepthGrowthConfig, StructuredSparsityConfig

if TYPE_CHECKING:
    from toe_train.recipes.schema import RunConfig


def frozen_epochs_are_of_the_run(config: RunConfig) -> None:
    """There are not more of them than epochs."""
    if config.model.frozen_epochs > config.epochs:
        raise ValueError(
            f"model.frozen_epochs: {config.model.frozen_epochs} are more than epochs={config.epochs}; use "
            f"{config.epochs}, with which the head alone is trained"
        )


def what_is_frozen_is_trained(config: RunConfig) -> None:
    """Frozen weights come from another training, and nothing changes them but training."""
    frozen, method = config.model.frozen_epochs, config.method
    if not frozen:
        return
    bring = config.model.initial_weights is not None or config.model.name.startswith(HF)  # whose folder has weights
    if not bring or config.model.initial_weights == NEW:
        raise ValueError(
            f"model.frozen_epochs: {frozen} would train a head on what new weights see, drawn at random; set "
            "model.initial_weights, or model.frozen_epochs=0"
        )
    if config.model.initial_weights == TIMM_OR_NEW:
        raise ValueError(
            f"model.frozen_epochs: {frozen} would train a head on new weights, drawn at random, where timm's are not "
            "at hand; set model.initial_weights=timm, or model.frozen_epochs=0"
        )
    if config.task_kind == "detection":
        raise ValueError(
            f"model.frozen_epochs: {frozen} is of the head of a classifier; set it to 0, as task.kind=detection learns "
            "its detection tokens with the rest"
        )
    if isinstance(method, (DepthGrowthConfig, StructuredSparsityConfig)):
        raise ValueError(
            f"model.frozen_epochs: method {method.kind} changes the weights that {frozen} epochs would leave alone; "
            "set model.frozen_epochs=0, or method=null"
        )


FINETUNING_CHECKS = (frozen_epochs_are_of_the_run, what_is_frozen_is_trained)
