"""Weights that a run starts from in place of new ones: fine-tuning (paper A.3; DeiT main.py)."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data import ImageNetInfo
from torch import nn

from toe_train.build.weights.asked import Asked
from toe_train.build.weights.detector import HEAD, STARTS, seen_alike
from toe_train.build.weights.fetched import fetched_weights
from toe_train.build.weights.fit import Head, fit
from toe_train.build.weights.huggingface import fit_classifier
from toe_train.build.weights.source import Weights, normalisation_note, read_weights
from toe_train.data import shorten
from toe_train.errors import UserError
from toe_train.models import TransformersClassifier

PRETRAINED = "timm"
# COCO's highest category id and one; and some names by id, with the first and the last.
COCO_CLASSES = 91
COCO_NAMES = {1: "person", 18: "dog", 62: "chair", 90: "toothbrush"}
PRETRAINED_OR_NEW = "timm_or_new"


@dataclass(frozen=True)
class Wanted:
    """What the run that starts from the weights is.

    Attributes:
        name: of its model.
        classes: names of its classes, in the order of the head's outputs.
        mean, std: of its normalisation.
    """

    name: str
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_initial_weights(model: nn.Module, wanted: Wanted, source: str, averaged: bool) -> str:
    """Puts weights of another training into a new model.

    The head is kept where the names of its classes are the run's, and new otherwise: never by its shape alone. A
    positional embedding for another number of patches is resized, its patches' part bicubically (DeiT main.py). What
    else may differ, see `weights.fit`.

    Args:
        model: as it was built; ToE is not part of its state.
        wanted: the run.
        source: "timm" for timm's pre-trained weights of the model's name, which it fetches, for YOLOS the DeiT's that
            the published one began from; "timm_or_new" for them, and where they are not to be had or are another
            model's, the new ones; or a run folder, a checkpoint of toe-train, an exported folder, or a file of weights
            as others publish them, also as safetensors; or hf: and a folder or name of transformers.
        averaged: take the averaged weights.

    Returns:
        What was done, in words: a line, and one for each kind of thing that was changed.

    Raises:
        UserError: there is no such file or download, no averaged weights, or the weights are another model's or not
            finite.
    """
    asked = Asked(
        source,
        f"model.{'name' if source == wanted.name else 'initial_weights'} = {source}",
        averaged,
        "model.initial_averaged=true",
        "model.initial_averaged=false",
    )
    is_timms = source in (PRETRAINED, PRETRAINED_OR_NEW)
    try:
        weights = fetched_weights(STARTS.get(wanted.name, wanted.name), asked) if is_timms else read_weights(asked)
        if isinstance(model, TransformersClassifier):
            return _put_in(model, weights, wanted, asked)
        if weights.card is not None and "model_type" in weights.card:
            raise asked.fault(f"is of transformers, and {wanted.name} is not; use model.name={weights.card['name']}")
        seen, weights, optional = seen_alike(model, weights, asked)
        head, why = _head(weights, wanted.classes, bool(optional))
        state, told = fit(seen, weights, wanted.name, asked, head, why, optional=optional)
    except UserError as error:
        if source != PRETRAINED_OR_NEW:
            raise
        return f"initial weights are new, drawn at random: {error}"
    seen.load_state_dict(state)
    return _told(weights, wanted, told)


def _put_in(model: TransformersClassifier, weights: Weights, wanted: Wanted, asked: Asked) -> str:
    """The same for a model of transformers."""
    head, why = _head(weights, wanted.classes, of_another_kind=False)
    state, told = fit_classifier(model, weights, asked, head == "keep", why)
    model.load_state_dict(state)
    return _told(weights, wanted, told)


def _told(weights: Weights, wanted: Wanted, told: list[str]) -> str:
    return "\n  ".join(
        [f"initial weights from {weights.path}", *told, *normalisation_note(weights, wanted.mean, wanted.std)]
    )


def _head(weights: Weights, classes: list[str], of_another_kind: bool) -> tuple[Head, str]:
    """Whether the head is kept, and why not."""
    if of_another_kind:
        return "new", "the weights are a classifier's"
    detector = weights.tensors.get(HEAD)
    head = weights.head if detector is None else detector
    if head is None:
        return "keep", "the weights have none"
    if weights.classes is None:
        if detector is not None and len(detector) == len(classes) + 1 and _are_of_coco(classes):
            return "keep", ""  # published weights have COCO's category ids as labels
        if len(head) == len(classes) and classes == ImageNetInfo().label_names():
            return "keep", ""  # 1000 outputs for ImageNet's own classes, whose order all published weights share
        return "new", "the file does not name its classes"
    if weights.classes == classes:
        return "keep", ""
    return "new", f"the weights are of other classes: {shorten(weights.classes)}"


def _are_of_coco(classes: list[str]) -> bool:
    """Whether labels are COCO's category ids, by their number and some of their names."""
    return len(classes) == COCO_CLASSES and all(classes[label] == name for label, name in COCO_NAMES.items())
