"""A trained model at work: what it says of images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import nn

from toe_train import data, models
from toe_train.build.inputs import build_sight
from toe_train.build.model import build_model
from toe_train.build.weights.source import normalisation_note
from toe_train.build.weights.trained import Trained, open_trained
from toe_train.recipes import TokenMergingConfig
from toe_train.training.precision import autocast_on


class Loaded(NamedTuple):
    """A trained model for a program of one's own.

    Attributes:
        model: the plain one, on the CPU, in eval mode; images (B, 3, S, S) -> logits (B, classes). A detector takes
            images (B, 3, H, W) and gives what `toe_train.tasks.detection.postprocess` takes.
        classes: names, in the order of the logits; numbers where the weights do not name them.
        transform: from a PIL RGB image to (3, S, S) float32, as the run evaluated; for a detector (3, H, W), sides
            that depend on the image's.
    """

    model: nn.Module
    classes: list[str]
    transform: data.Transform


class Prediction(NamedTuple):
    """What a model says of an image: the most probable classes first, or why the image cannot be read."""

    image: str
    classes: list[str]
    probabilities: list[float]
    fault: str | None = None


@dataclass(frozen=True)
class Predictor:
    """A trained model as an evaluation uses it.

    Attributes:
        model: on `device`, in eval mode.
        classes: names, in the order of its outputs.
        transform: of the evaluation.
        exif_orientation: what is done about that of image files.
        device: where it computes.
        autocast: reusable context of the forward pass.
        told: what was done to the weights, a line each.
    """

    model: nn.Module
    classes: list[str]
    transform: data.Transform
    exif_orientation: data.ExifOrientation
    device: torch.device
    autocast: torch.autocast
    told: list[str]


def load(run: str | Path, weights: str = "model", config: str | Path | None = None) -> Loaded:
    """Opens a trained model: `model, classes, transform = load("runs/photos")`.

    Args:
        run: a run folder (its best checkpoint), a checkpoint, an exported folder, or a file of published weights.
        weights: "model" for the raw weights, "ema" for the averaged ones.
        config: YAML file of a run with the model, where the weights do not bring their own.

    Raises:
        UserError: a ValueError; there is no such file, no classifier, or nothing tells the model.
    """
    trained = open_trained(str(run), weights, None if config is None else str(config), option="")
    trained.require_classifier()
    section = trained.built_as.model
    model = models.create_model(section.name, trained.num_classes, 0.0, section.image_size, **section.arguments)
    trained.put_in(model)
    for note in trained.other_model(model):
        warnings.warn(note.removeprefix("note: "), stacklevel=2)
    return Loaded(model.eval(), trained.class_names, build_sight(trained.config))


def ready_model(trained: Trained, num_classes: int, device: torch.device) -> tuple[nn.Module, list[str]]:
    """The model of an evaluation, in eval mode, and what was done to its weights, a line each.

    Raises:
        UserError: the weights are another model's.
    """
    built = build_model(trained.built_as, num_classes)
    model = built.model.to(device).eval()
    told = trained.put_in(model)
    if isinstance(trained.config.method, TokenMergingConfig):
        told.append(f"note: {built.method.note}")
    return model, told


def open_predictor(trained: Trained, device: torch.device) -> Predictor:
    """A trained model on `device`, in its run's precision.

    Raises:
        UserError: it has no classifier, or the weights are another model's.
    """
    trained.require_classifier()
    config = trained.config
    model, told = ready_model(trained, trained.num_classes, device)
    told += normalisation_note(trained.weights, config.augment.mean, config.augment.std)
    if trained.weights.classes is None:
        told.append("note: the file does not name its classes; they are numbered from 0, in the order of its outputs")
    return Predictor(
        model,
        trained.class_names,
        build_sight(config),
        config.data.exif_orientation,
        device,
        autocast_on(device, config.train.precision),
        told,
    )


@torch.inference_mode()
def predict(
    predictor: Predictor, paths: Sequence[str | data.Span], top: int, batch: int, workers: int
) -> Iterator[Prediction]:
    """What a model says of images, one after the other, all tokens seen.

    Args:
        predictor: the model.
        paths: of the files, or their places in archives.
        top: how many classes are told of each.
        batch: images at a time.
        workers: loader processes.
    """
    pin = predictor.device.type == "cuda"
    with TemporaryDirectory() as place:
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", len(paths))
        shown = data.EvalSet(data.NamedImages(paths, predictor.exif_orientation), predictor.transform, skipped)
        batches = data.eval_loader(shown, range(len(paths)), batch, workers, pin)
        left = iter(paths)
        with batches.watching():
            for images, labels in batches:
                with predictor.autocast:
                    logits = predictor.model(images.to(predictor.device, non_blocking=True))
                found = logits.float().softmax(dim=1).topk(top, dim=1)  # (B, top)
                is_read = (labels != data.NOT_COUNTED).tolist()
                faults = {} if all(is_read) else skipped.reasons()
                for read, values, indices in zip(is_read, found.values.tolist(), found.indices.tolist(), strict=True):
                    path = str(next(left))
                    if read:
                        yield Prediction(path, [predictor.classes[index] for index in indices], values)
                    else:
                        yield Prediction(path, [], [], faults[path])
        batches.close()
