"""Classifiers that make token labels: timm's with their own weights, or the models that toe-train trained."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from toe_train import data, models
from toe_train.build.weights.asked import Asked
from toe_train.build.weights.fetched import require_reachable
from toe_train.build.weights.fit import fit
from toe_train.build.weights.source import Weights, is_of_a_run, locate, read_weights
from toe_train.build.weights.trained import OWN_ARGUMENTS, trained_in_run
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
        told: what was done to the weights, a line each.
    """

    name: str
    weights: str
    model: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    told: tuple[str, ...] = ()


def open_teacher(
    name: str | None, weights: str, image_size: int | None, classes: list[str], averaged: bool = False
) -> Teacher:
    """A teacher for a data set of `classes`.

    Args:
        name: a timm name; a run and an exported folder bring their own, and None is enough.
        weights: "pretrained" (timm fetches them), "random" (for trials), or what `weights.read_weights` reads: a run
            folder or a checkpoint of it, of whose two models the one is taken that `checkpoint.best_metric` of the run
            is about, an exported folder, or a file of weights.
        image_size: None for the model's own, of timm's the larger one for tests where there are two. A convolutional
            network's map lies over the image exactly where this is a multiple of its stride, mostly 32.
        classes: names of the class folders.
        averaged: of a file, the averaged weights.

    Raises:
        UserError: there is no such model or file, they do not belong together, or the classes are others.
    """
    asked = Asked(weights, f"--teacher-weights {weights}", averaged, "--teacher-averaged", "the raw ones, without it")
    found = None
    if weights not in ("pretrained", "random"):
        path = locate(asked)
        if is_of_a_run(path) or (name is None and path.suffix == ".pt"):
            return _from_run(path, asked, name, image_size, classes)
        found = read_weights(asked)
        card = found.card or {}
        name = name or card.get("architecture")
        image_size = image_size or (card.get("pretrained_cfg", {}).get("input_size") or [None])[-1]
    elif averaged:
        raise asked.has_none()
    if name is None:
        raise UserError("--teacher is required, unless --teacher-weights names a checkpoint of toe-train")
    model = _create(name, asked, found, image_size, len(classes))
    if model.num_classes != len(classes):
        raise UserError(
            f"--teacher {name} knows {model.num_classes} classes and the images have {len(classes)}: its class ids "
            "would not be the data set's. Use a teacher of the same classes, e.g. one that toe-train trained on them "
            "(--teacher-weights RUN/checkpoints/best.pt)"
        )
    told: list[str] = []
    if found is not None:
        if found.classes and (fault := compare_classes(found.classes, classes, ("the teacher", "the images"))):
            raise asked.fault(fault)
        state, told = fit(model, found, name, asked, "keep", exact=True)
        model.load_state_dict(state)
    source = weights if found is None else _fingerprint(found.path)
    settings = resolve_model_data_config(model, use_test_size=True)
    size = image_size or settings["input_size"][-1]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))[0]
    if size % patch:
        nearest = [str(legal) for legal in (size // patch * patch, (size // patch + 1) * patch) if legal]
        raise UserError(
            f"--image-size {size} is not a multiple of the patch size {patch} of {name}, which would not see the edge; "
            f"use {' or '.join(nearest)}"
        )
    mean, std = ((found and getattr(found, key)) or settings[key] for key in ("mean", "std"))
    return Teacher(name, source, model, size, mean, std, settings["interpolation"], tuple(told))


def _from_run(path: Path, asked: Asked, name: str | None, image_size: int | None, classes: list[str]) -> Teacher:
    try:
        run = checkpoints.read(path)
    except UserError as error:
        raise asked.fault(str(error)) from None
    config = run["config"]
    section = config["model"]
    for option, given, own in (("teacher", name, section["name"]), ("image-size", image_size, section["image_size"])):
        if given not in (None, own):
            raise UserError(f"--{option} {given}: {path} was trained with {own}; leave the option out")
    if fault := compare_classes(run["classes"], classes, ("the teacher", "the images")):
        raise asked.fault(fault)
    averaged = asked.averaged or config["checkpoint"]["best_metric"] == "ema_top1"
    trained = trained_in_run(run, "ema" if averaged else "model", str(path))
    kwargs = trained.built_as.model.kwargs  # of the depth that the checkpoint has
    model = models.create_model(section["name"], len(classes), 0.0, section["image_size"], **kwargs)
    told = trained.put_in(model)
    return Teacher(
        section["name"],
        _fingerprint(path),
        model,
        section["image_size"],
        tuple(config["augment"]["mean"]),
        tuple(config["augment"]["std"]),
        config["evaluate"]["interpolation"],
        tuple(told),
    )


def _create(name: str, asked: Asked, found: Weights | None, image_size: int | None, num_classes: int) -> nn.Module:
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them, e.g. resnet50"
        raise UserError(f"--teacher {name}: there is no such model; {hint}")
    options: dict[str, Any] = {"num_classes": num_classes}
    if asked.path == "pretrained":
        require_reachable(name, asked)
        options = {"pretrained": True}
    elif found is not None and found.card is not None and name == found.card.get("architecture"):
        given = found.card.get("model_args", {})
        options |= {key: value for key, value in given.items() if key not in OWN_ARGUMENTS}
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        with data.seeded(0):
            try:
                return timm.create_model(name, **options, **size)
            except TypeError as error:  # a network that takes any size has no such argument
                if "img_size" not in str(error):
                    raise
                return timm.create_model(name, **options)
    except Exception as error:  # what a constructor or a download may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"--teacher {name} with --teacher-weights {asked.path} cannot be made: {reason}; give weights of this "
            "model, a checkpoint of toe-train, or another --image-size"
        ) from error


def _fingerprint(path: Path) -> str:
    return f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
