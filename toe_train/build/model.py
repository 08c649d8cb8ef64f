"""The model of a configuration, with what training attaches to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import PatchDropout
from torch import nn

from toe_train import data, models
from toe_train.build.initial_weights import Wanted, load_initial_weights
from toe_train.build.method import build_method
from toe_train.errors import UserError
from toe_train.methods.method import Method
from toe_train.recipes import HF, NEW, ModelConfig, RunConfig, Size, config_at, plan_epochs, side_of, sides_of


@dataclass(frozen=True)
class BuiltModel:
    """A model with what training attached to it."""

    model: nn.Module
    method: Method
    draws: Mapping[str, models.GivenDraws]  # of the layers that draw in training, by kind
    grid: tuple[int, int]  # rows and columns of patches

    @property
    def num_tokens(self) -> int:
        """Patch tokens N of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def is_dense(self) -> bool:
        """Whether the model gives an output for each patch token in training."""
        return bool(getattr(self.model, "dense_output", False))


def build_model(config: RunConfig, num_classes: int, image_size: Size | None = None) -> BuiltModel:
    """The model in its initial state, a function of the seed alone, prepared for the run's method.

    Args:
        config: the run.
        num_classes: width of the classifier.
        image_size: of what it sees, in a stage of a curriculum; None for `model.image_size`.

    Raises:
        UserError: a model that does not exist, cannot be built so, or cannot be trained by the method.
    """
    section = config.model
    size = image_size or section.image_size
    with data.seeded(data.derive_seed(config.seed, "init")):
        model = _created(section, num_classes, size)
    key = "model.image_size" if size == section.image_size else "curriculum.image_sizes"
    grid = _require_whole_patches(section.name, f"{key} = {size}", size, model)
    draws = {"drop_path": models.give_drop_path(model), "dropout": models.give_dropout(model)}
    _refuse_dropout(model)
    try:
        method = build_method(config)
        method.prepare(model)
    except ValueError as error:
        raise UserError(f"{'expansion' if config.expansion else 'method'}: {error}") from None
    return BuiltModel(model, method, draws, grid)


def _created(section: ModelConfig, num_classes: int, size: Size) -> nn.Module:
    """The model with drop path and dropout, as timm's constructors take them."""
    create = partial(models.create_model, section.name, num_classes, section.drop_path, size, **section.arguments)
    if not section.dropout:
        return create()
    rates = {"pos_drop_rate": section.dropout, "proj_drop_rate": section.dropout}
    try:
        return create(**rates)
    except UserError:
        create()  # where that cannot be built either, it is not the dropout
        raise UserError(
            f"model.dropout = {section.dropout}: {section.name} has none (timm's {' and '.join(rates)}); set it to 0, "
            "and model.drop_path in its place"
        ) from None


def batch_norm_notes(model: nn.Module, world_size: int) -> list[str]:
    """What several processes should be told of a model with batch norm, LV-ViT's stem: it sees no global batch."""
    if world_size == 1 or not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        return []
    return [
        "note: batch norm sees the micro-batch of its process, not the global batch; the first process's running "
        "statistics go to all with each forward pass (DDP's forward_sync_buffers), and are what is evaluated and saved"
    ]


def require_resizable(config: RunConfig, sizes: Sequence[Size]) -> None:
    """Refuses a model of which more than the positional embedding depends on the image's size, where that changes.

    Raises:
        UserError: naming what depends on it.
    """
    if len(set(sizes)) == 1:
        return
    shapes = [
        {name: value.shape for name, value in build_model(config, 2, size).model.state_dict().items()}
        for size in sorted(map(side_of, set(sizes)))
    ]
    for name, shape in shapes[-1].items():
        if name != "pos_embed" and any(other.get(name) != shape for other in shapes):
            raise UserError(
                f"model.name = {config.model.name}: {name} depends on the image's size, and a curriculum resizes "
                "pos_embed alone; use a model such as deit_tiny_patch16_224, or curriculum=null"
            )


def require_whole_in_the_end(config: RunConfig) -> None:
    """Refuses a run whose last segment trains a model of other blocks than the run's own, which is evaluated after it.

    Raises:
        UserError: naming both numbers.
    """
    last = config_at(config, plan_epochs(config)[-1])
    if last.model == config.model:
        return
    own, trained = (
        len(models.blocks_of(models.create_model(section.name, 2, 0.0, section.image_size, **section.arguments)))
        for section in (config.model, last.model)
    )
    if own != trained:
        raise UserError(
            f"method: the run ends with a model of {trained} blocks, and model.name = {config.model.name} has {own}; "
            f"end with {own}, or set model.kwargs={{depth: {trained}}}"
        )


def load_initial(config: RunConfig, built: BuiltModel, classes: list[str]) -> str | None:
    """Puts the run's initial weights into the model; what was done in words, None where it starts from new ones.

    Raises:
        UserError: they are not there, or another model's.
    """
    section, augment = config.model, config.augment
    source = section.initial_weights
    if source is None and section.name.startswith(HF):
        source = section.name
    if source is None:
        return None
    if source == NEW:
        return "initial weights are new, drawn at random"
    wanted = Wanted(section.name, classes, augment.mean, augment.std)
    return load_initial_weights(built.model, wanted, source, section.initial_averaged)


def _require_whole_patches(name: str, given: str, size: Size, model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches, which must cover the image, whose side is `given` in the configuration."""
    embedding: Any = getattr(model, "patch_embed", None)
    grid = getattr(embedding, "grid_size", None)
    if grid is None:
        raise UserError(
            f"model.name = {name}: has no patch embedding; toe-train trains vision transformers, e.g. "
            "deit_tiny_patch16_224"
        )
    patch = embedding.patch_size[0]
    for side in sides_of(size):
        if side % patch == 0:
            continue
        whole = side // patch * patch
        near = " or ".join(str(multiple) for multiple in (whole, whole + patch) if multiple)
        raise UserError(
            f"{given} is not a multiple of the patch size {patch} of {name}: the model would not see the edge; "
            f"use {near}"
        )
    return grid[0], grid[1]


def _refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        rate = getattr(module, "p" if isinstance(module, nn.Dropout) else "prob", 0.0)
        if isinstance(module, (nn.Dropout, PatchDropout)) and rate:
            raise UserError(
                f"model.kwargs: {name} drops out with probability {rate}, and would draw others for every number of "
                "processes; leave it at 0, and use model.dropout or model.drop_path, whose draws are given by sample"
            )
