"""A trained model with Token Expansion, and images that it is looked at with.

Shapes: N = rows * columns patch tokens of an image, K kept ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toe_train import data
from toe_train.build.inputs import build_sight, patch_side
from toe_train.build.model import BuiltModel, build_model
from toe_train.build.weights.trained import Trained
from toe_train.errors import UserError
from toe_train.expansion import TokenExpansion
from toe_train.methods.pictures import as_pictures
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.recipes import ExpansionConfig

# Where the run had no ToE: the paper's for DeiT-T (docs/fidelity.md, "Speed-up factors").
USUAL = ExpansionConfig(stage_epochs=(0, 100, 200), keep_rates=(0.5, 0.75, 1.0), initial_keep_rate=0.25)


@dataclass(frozen=True)
class Photo:
    """An image.

    Attributes:
        name: of the file.
        folder: that it lies in, which may be named after its class.
        image: (1, 3, H, W), as the model sees it.
        picture: (3, H, W) in 0..1, the same before normalisation.
        grid: rows and columns of patches.
    """

    name: str
    folder: str
    image: Tensor
    picture: Tensor
    grid: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Patch tokens N."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Look:
    """What the model makes of an image in a stage.

    Attributes:
        output: of the model.
        kept: (K,) positions; None where all are.
        owner: (N,) for each patch the place in `kept` of the token that it is part of; None without merging.
    """

    output: Any
    kept: Tensor | None
    owner: Tensor | None


@dataclass(frozen=True)
class Viewer:
    """A trained model with ToE, and photos.

    Attributes:
        built: the model, in eval mode.
        expansion: its ToE.
        classes: names, in the order of its outputs; none where it has no classifier.
        finds_boxes: whether it is a detector.
        photos: in the order in which they were given.
        noise: (1, N), what random initialisation draws of every image.
        told: what was done to the weights, a line each.
    """

    built: BuiltModel
    expansion: TokenExpansion
    classes: list[str]
    finds_boxes: bool
    photos: tuple[Photo, ...]
    noise: Tensor
    told: tuple[str, ...] = ()

    @property
    def stages(self) -> list[int]:
        """Those in which tokens are dropped."""
        schedule = self.expansion.schedule
        return [stage for stage in range(1, schedule.num_stages + 1) if not schedule.is_dense(stage)]

    def look(self, photo: Photo, stage: int = 0) -> Look:
        """What the model makes of a photo with the tokens of a stage; 0 for all of them."""
        with self.dropping(stage):
            output = self.built.model(photo.image)
        kept, owner = self.expansion.kept, self.expansion.owner
        return Look(output, None if kept is None else kept[0], None if owner is None else owner[0])

    @contextmanager
    def dropping(self, stage: int) -> Iterator[None]:
        """The model in evaluation but for ToE, which drops tokens of an image as in `stage`; 0 for none."""
        former = self.expansion.stage
        self.expansion.stage = stage
        self.expansion.noise = self.noise
        self.expansion.train(stage > 0)
        try:
            with torch.no_grad():
                yield
        finally:
            self.expansion.stage, self.expansion.noise = former, None
            self.expansion.eval()


def open_viewer(trained: Trained, paths: Sequence[Path]) -> Viewer:
    """Builds a trained model and reads images.

    Args:
        trained: the model; one without ToE gets the paper's r1 = 0.5.
        paths: image files.

    Raises:
        UserError: weights of another model, a run with another method, or an image that cannot be read.
    """
    config = trained.built_as
    if config.method is not None:
        raise UserError(
            f"{trained.weights.path}: its run has method.kind={config.method.kind}, and pictures are of "
            "Token Expansion alone; to see what that would do with these weights, export them and give the folder"
        )
    config = config.model_copy(update={"expansion": config.expansion or USUAL})
    known, finds_boxes = trained.num_classes, config.task_kind == "detection"
    built = build_model(config, known or 1)
    assert isinstance(built.method, TokenExpansionMethod)
    expansion = built.method.expansion
    told = trained.put_in(built.model, with_head=known > 0)
    if trained.built_as.expansion is None:
        rates = ", ".join(f"{rate:g}" for rate in USUAL.keep_rates)
        told.append(f"note: without Token Expansion; the stages drawn are the paper's for DeiT-T, keeping {rates}")
    built.model.eval()
    expansion.remember_owner = True
    transform, side = build_sight(config), patch_side(config)
    photos = []
    for path in paths:
        image = transform(data.load_rgb(path, config.data.exif_orientation))  # (3, H, W)
        grid = (image.shape[1] // side, image.shape[2] // side) if finds_boxes else built.grid
        picture = as_pictures(image, config.augment.mean, config.augment.std)
        photos.append(Photo(data.legible(path.name), path.resolve().parent.name, image[None], picture, grid))
    # Of random initialisation, the same draws for every image and each time.
    noise = torch.rand(1, built.num_tokens, generator=data.generator(config.seed, "pictures"))
    classes = trained.class_names if known else []
    return Viewer(built, expansion, classes, finds_boxes, tuple(photos), noise, tuple(told))
