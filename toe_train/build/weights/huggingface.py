"""Weights of transformers' image classifiers, brought into the form of a model for images of another size or classes.

Shapes: P prefix tokens, N patches, D width; positions are (1, P+N, D) or (P+N, D).
"""

from __future__ import annotations

import math

from torch import Tensor

from toe_train.build.weights.asked import Asked, listed
from toe_train.build.weights.source import Weights
from toe_train.models import PREFIX, TransformersClassifier, resize_positions

POSITIONS = "position_embedding"  # in the name of each table: position_embeddings, position_embedding.weight


def fit_classifier(
    model: TransformersClassifier, weights: Weights, asked: Asked, keeps_head: bool, why_new: str = ""
) -> tuple[dict[str, Tensor], list[str]]:
    """A state_dict for the model, complete, and what was done to the weights, a line for each kind.

    The classifier is new where it is not kept or missing. Positions of another number of patches are resized
    bicubically (DeiT main.py), the rows of prefix tokens stay.

    Raises:
        UserError: they are another model's.
    """
    own, told, faults = model.state_dict(), list(weights.told), []
    fitted = {}
    for key, value in weights.tensors.items():
        if model.is_of_the_head(key) and not keeps_head:
            continue
        if key in own and POSITIONS in key and value.shape != own[key].shape:
            value = _resized(key, value, own[key], model.patch_embed.num_patches, told)
        if key not in own:
            faults.append(f"{key} is not the model's")
        elif value.shape != own[key].shape:
            faults.append(f"{key} has shape {list(value.shape)} and not {list(own[key].shape)}")
        fitted[key] = value
    new = [key for key in own if key not in fitted and model.is_of_the_head(key)]
    unused = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    faults += [f"{key} is missing" for key in own if key not in fitted and key not in new and key not in unused]
    if faults:
        raise asked.fault(
            f"these are not the weights of {type(model).__name__} as it is built here ({listed(faults)}); give those "
            f"of the same model.name and model.kwargs, such as {PREFIX} and the folder itself"
        )
    if new:
        told.append(f"new: {listed(new)}" + (f" ({why_new})" if why_new else ""))
    return {**own, **fitted}, told


def _resized(key: str, value: Tensor, own: Tensor, num_patches: int, told: list[str]) -> Tensor:
    """A table of positions for as many patches as the model's; itself where it is not of a square of patches."""
    prefix = own.shape[-2] - num_patches
    patches = value.shape[-2] - prefix
    side = math.isqrt(max(patches, 0))
    if value.ndim != own.ndim or value.shape[-1] != own.shape[-1] or side * side != patches:
        return value
    now = math.isqrt(num_patches)
    told.append(f"resized: {key} from {side}x{side} to {now}x{now} patches")
    return resize_positions(value.reshape(1, -1, value.shape[-1]), own.shape[-2], prefix).reshape(own.shape)
