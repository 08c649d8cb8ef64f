"""Classifiers that make token labels: timm's with their own weights, or the models that toe-train trained."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import load_checkpoint
from torch import nn

from toe_train import data, models
from toe_train.data import compare_classes
from toe_train.errors import UserError
from toe_train.runs import checkpoints


@dataclass(frozen=True)
class Teacher:
    """A classifier and what its input looks like.

    Attributes:
        name: model name.
        weights: where its weights are from: pretrained, random, or a file's name and checksum.
        model: gives logits of the data set's classes.
        image_size: side of its square input in pixels.
        mean, std: normalisation, of images scaled to 0..1.
        interpolation: for resizing.
    """

    name: str
    weights: str
    model: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def open_teacher(name: str | None, weights: str, image_size: int | None, classes: list[str]) -> Teacher:
    """A teacher for a data set of `classes`.

    Args:
        name: a timm name; a checkpoint of toe-train brings its own, and None is enough.
        weights: "pretrained" (timm fetches them), "random" (for trials), or a file: a checkpoint of a run
            (RUN/checkpoints/best.pt), of whose two models the one is taken that `checkpoint.best_metric` of the run
            is about, or a state_dict that timm can load.
        image_size: None for the model's own, of timm's the larger one for tests where there are two. A convolutional
            network's map lies over the image exactly where this is a multiple of its stride, mostly 32.
        classes: names of the class folders.

    Raises:
        UserError: there is no such model or file, they do not belong together, or the classes are others.
    """
    if weights not in ("pretrained", "random") and (run := _read_run(weights, name)) is not None:
        return _from_run(run, name, weights, image_size, classes)
    if name is None:
        raise UserError("--teacher is required, unless --teacher-weights names a checkpoint of toe-train")
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(f"--teacher {name}: there is no such model; did you mean {' or '.join(near) or 'another'}?")
    model = _create(name, weights, image_size, len(classes))
    if model.num_classes != len(classes):
        raise UserError(
            f"--teacher {name} knows {model.num_classes} classes and the images have {len(classes)}: its class ids "
            "would not be the data set's. Use a teacher of the same classes, e.g. one that toe-train trained on them "
            "(--teacher-weights RUN/checkpoints/best.pt)"
        )
    source = weights if weights in ("pretrained", "random") else _fingerprint(Path(weights))
    settings = resolve_model_data_config(model, use_test_size=True)
    size = image_size or settings["input_size"][-1]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))[0]
    if size % patch:
        nearest = [str(legal) for legal in (size // patch * patch, (size // patch + 1) * patch) if legal]
        raise UserError(
            f"--image-size {size} is not a multiple of the patch size {patch} of {name}, which would not see the edge; "
            f"use {' or '.join(nearest)}"
        )
    return Teacher(name, source, model, size, settings["mean"], settings["std"], settings["interpolation"])


def _read_run(path: str, name: str | None) -> dict[str, Any] | None:
    """The checkpoint of a toe-train run; None for another file, which `name` then has to tell the model of."""
    if not Path(path).is_file():
        raise UserError(f"--teacher-weights {path}: there is no such file; give a file, pretrained or random")
    try:
        return checkpoints.read(path)
    except UserError:
        if name is None:
            raise
        return None


def _from_run(
    run: dict[str, Any], name: str | None, weights: str, image_size: int | None, classes: list[str]
) -> Teacher:
    config = run["config"]
    section = config["model"]
    for option, given, own in (("teacher", name, section["name"]), ("image-size", image_size, section["image_size"])):
        if given not in (None, own):
            raise UserError(f"--{option} {given}: {weights} was trained with {own}; leave the option out")
    if fault := compare_classes(run["classes"], classes, ("the teacher", "the images")):
        raise UserError(f"--teacher-weights {weights}: {fault}")
    model = models.create_model(section["name"], len(classes), 0.0, section["image_size"], **section["kwargs"])
    averaged = config["checkpoint"]["best_metric"] == "ema_top1"
    model.load_state_dict(run["ema" if averaged else "model"])
    return Teacher(
        section["name"],
        _fingerprint(Path(weights)),
        model,
        section["image_size"],
        tuple(config["augment"]["mean"]),
        tuple(config["augment"]["std"]),
        config["evaluate"]["interpolation"],
    )


def _create(name: str, weights: str, image_size: int | None, num_classes: int) -> nn.Module:
    options: dict[str, Any] = {"pretrained": True} if weights == "pretrained" else {"num_classes": num_classes}
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        with data.seeded(0):
            try:
                model = timm.create_model(name, **options, **size)
            except TypeError as error:  # a network that takes any size has no such argument
                if "img_size" not in str(error):
                    raise
                model = timm.create_model(name, **options)
        if weights not in ("pretrained", "random"):
            load_checkpoint(model, weights)
    except Exception as error:  # what a constructor, a download or a file of weights may raise
        reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
        raise UserError(
            f"--teacher {name} with --teacher-weights {weights} cannot be made: {reason}; give weights of this model, "
            "a checkpoint of toe-train, or another --image-size"
        ) from error
    return model


def _fingerprint(path: Path) -> str:
    return f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
