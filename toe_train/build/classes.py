"""Classes of unlike size: the weights of their losses, how often they are shown, and what a run says of both."""

from __future__ import annotations

import torch
from torch import Tensor

from toe_train import data
from toe_train.errors import UserError
from toe_train.recipes import RunConfig

CLASSES_SHOWN = 10


def class_weights(config: RunConfig, images: data.ImageSource) -> Tensor | None:
    """What each class's term of the loss is multiplied by, (K,) float32; None where none is.

    Balanced, a class of n_c images out of n weighs n / (K n_c) (scikit-learn's rule), so that an image weighs 1 on
    average.

    images: that the run trains on.

    Raises:
        UserError: there are not as many weights as classes, or a class that is to be balanced has no images.
    """
    given, classes = config.task.class_weights, images.classes
    if given is None:
        return None
    if given != "balanced":
        if len(given) != len(classes):
            raise UserError(
                f"task.class_weights: {len(given)} are given, and the data set has {len(classes)} classes "
                f"({data.shorten(classes)}); give one for each, in this order, or balanced"
            )
        return torch.tensor(given, dtype=torch.float32)
    counts = images.counts()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise UserError(
            f"task.class_weights: balanced weighs by the number of images, and {data.shorten(empty)} has none to train "
            "on; add some, remove the class, or give a list of weights"
        )
    return torch.tensor([sum(counts) / (len(counts) * count) for count in counts], dtype=torch.float32)


def class_notes(
    config: RunConfig, images: data.ImageSource, weights: Tensor | None, order: data.GlobalOrder
) -> list[str]:
    """What a run says of its classes at the beginning, where it treats them by their size."""
    named = [data.legible(name) for name in images.classes]
    found = []
    if config.data.sampling == "balanced":
        counts = images.counts()
        places = order.steps_per_epoch * order.global_batch
        each = places / max(1, sum(count > 0 for count in counts))
        found.append(
            f"classes are sampled alike, about {each:.4g} places of {places} an epoch for each; their images: "
            + _listed(named, [float(count) for count in counts])
        )
    if weights is not None:
        found.append(f"weights of the classes in the training loss: {_listed(named, weights.tolist())}")
    return found


def _listed(names: list[str], values: list[float]) -> str:
    """Names with their values; of many the ends, by value."""
    pairs = [f"{name} {value:.4g}" for name, value in zip(names, values, strict=True)]
    if len(pairs) <= CLASSES_SHOWN:
        return ", ".join(pairs)
    least, most = min(range(len(values)), key=values.__getitem__), max(range(len(values)), key=values.__getitem__)
    return f"{pairs[least]} (the least) to {pairs[most]} (the most) of {len(pairs)}"
