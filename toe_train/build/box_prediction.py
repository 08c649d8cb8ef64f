"""A trained detector at work: which objects it finds in images, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from toe_train import data
from toe_train.build.prediction import Predictor
from toe_train.tasks.detection import postprocess

LEAST_SCORE = 0.5


class FoundObjects(NamedTuple):
    """What a detector finds in an image, the best scores first; or why the image cannot be read.

    Attributes:
        image: path, or place in an archive.
        size: width and height in pixels.
        labels: n, numbers of the classes.
        scores: n.
        boxes: (n, 4) float32 xyxy in the image's pixels, cut to it.
        highest: the highest score of all, those left out included.
    """

    image: str | data.Span
    size: tuple[int, int]
    labels: list[int]
    scores: list[float]
    boxes: Tensor
    highest: float = 0.0
    fault: str | None = None


@torch.inference_mode()
def find_objects(
    predictor: Predictor,
    paths: Sequence[str | data.Span],
    least_score: float,
    top: int | None,
    batch: int,
    workers: int,
) -> Iterator[FoundObjects]:
    """What a detector finds in image files, one after the other, all tokens seen, none of them padded.

    Args:
        predictor: the detector.
        paths: of the files, or their places in archives.
        least_score: boxes of lower scores are left out.
        top: boxes told of each image, at most; None for all.
        batch: images read at a time; those of them that are evaluated at one size go through the model together.
        workers: loader processes.
    """
    scene = predictor.transform
    assert isinstance(scene, data.SceneTransform)
    named = data.NamedScenes(paths, predictor.exif_orientation)
    with TemporaryDirectory() as place:
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", len(paths))
        shown = data.BoxEvalSet(named, scene.shown, scene.mean, scene.std, skipped)
        batches = data.eval_loader(shown, range(len(paths)), batch, workers, collate=list)
        with batches.watching():
            left = iter(paths)
            for seen in batches:
                whole = _of_batch(predictor, seen)
                faults = {} if all(found is not None for found in whole) else skipped.reasons()
                for one, found in zip(seen, whole, strict=True):
                    path = next(left)
                    if found is None:
                        yield FoundObjects(path, (0, 0), [], [], torch.empty(0, 4), fault=faults[str(path)])
                    else:
                        yield chosen(path, one.size, found, least_score, top)
        batches.close()


def _of_batch(predictor: Predictor, seen: Sequence[data.Seen]) -> list[dict[str, Tensor] | None]:
    """All that `postprocess` gives for images of any sizes, on the CPU; None for one that could not be read."""
    whole: list[dict[str, Tensor] | None] = [None] * len(seen)
    read = [place for place, one in enumerate(seen) if one.index != data.NOT_COUNTED]
    by_shape = sorted(read, key=lambda place: seen[place].image.shape)
    for _, group in groupby(by_shape, key=lambda place: seen[place].image.shape):
        places = list(group)
        images = torch.stack([seen[place].image for place in places]).to(predictor.device)  # (b, 3, H, W)
        with predictor.autocast:
            logits, boxes = predictor.model(images)
        sizes = torch.tensor([seen[place].size for place in places])
        for place, found in zip(places, postprocess(logits, boxes, sizes), strict=True):
            whole[place] = {name: value.cpu() for name, value in found.items()}
    return whole


def chosen(
    path: str | data.Span, size: tuple[int, int], found: dict[str, Tensor], least_score: float, top: int | None = None
) -> FoundObjects:
    """Of all that `postprocess` gives for an image, what is told.

    Args:
        path: of the image.
        size: its height and width in pixels.
        found: scores (Q,), labels (Q,) and boxes (Q, 4) xyxy in its pixels.
        least_score: boxes of lower scores are left out.
        top: boxes, at most; None for all.
    """
    width, height = size[::-1]
    if not all(value.isfinite().all() for value in found.values()):
        fault = f"{path}: what the model finds in it is not finite; use another checkpoint"
        return FoundObjects(path, (width, height), [], [], torch.empty(0, 4), fault=fault)
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] >= least_score][:top]
    most = torch.tensor([width, height, width, height])
    boxes = torch.minimum(found["boxes"][order].clamp(min=0), most)  # (n, 4)
    labels, scores = found["labels"][order].tolist(), found["scores"][order].tolist()
    return FoundObjects(path, (width, height), labels, scores, boxes, float(found["scores"].max()))
