"""Weights that a run starts from in place of new ones: fine-tuning (paper A.3; DeiT main.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed
from timm.models import load_state_dict
from torch import Tensor, nn

from toe_train.errors import UserError
from toe_train.runs import checkpoints, sealed
from toe_train.training.guard import not_finite

PRETRAINED = "timm"
POSITIONS = "pos_embed"
SHOWN = 5


def load_initial_weights(model: nn.Module, name: str, source: str, averaged: bool) -> str:
    """Puts weights of another training into a new model.

    What belongs to the classes (a head of another width) stays new; a positional embedding for another number of
    patches is resized, its patches' part bicubically (DeiT main.py). All else must fit.

    Args:
        model: as it was built; ToE is not part of its state.
        name: its timm name, for `source` "timm".
        source: "timm" for timm's pre-trained weights of that name, which it fetches; or a file: a checkpoint of
            toe-train, a published one of DeiT's ({"model": ...}), or a plain state_dict, also as safetensors.
        averaged: of a checkpoint with averaged weights, take those.

    Returns:
        What was done, in words.

    Raises:
        UserError: there is no such file or download, or the weights are another model's or not finite.
    """
    weights = _pretrained(name) if source == PRETRAINED else _of_file(Path(source), averaged)
    own = model.state_dict()
    new = [key for key in own if _is_of_the_head(key) and (key not in weights or weights[key].shape != own[key].shape)]
    weights = {
        key: value for key, value in weights.items() if key not in new and (key in own or not _is_of_the_head(key))
    }
    resized = ""
    if POSITIONS in weights and POSITIONS in own and weights[POSITIONS].shape != own[POSITIONS].shape:
        weights[POSITIONS] = _resized(model, weights[POSITIONS], own[POSITIONS])
        resized = f", positions resized to {own[POSITIONS].shape[1]}"
    faults = [f"{key} is missing" for key in own if key not in weights and key not in new]
    faults += [f"{key} is not the model's" for key in weights if key not in own]
    faults += [
        f"{key} has shape {list(weights[key].shape)} and not {list(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if faults:
        raise UserError(
            f"model.initial_weights = {source}: these are not the weights of {name} as it is built here "
            f"({'; '.join(faults[:SHOWN])}{_and_more(faults)}); give those of the same model.name and model.kwargs"
        )
    if broken := not_finite(weights):
        raise UserError(
            f"model.initial_weights = {source}: these of its tensors hold numbers that are not finite: "
            f"{', '.join(broken[:SHOWN])}{_and_more(broken)}; give another checkpoint"
        )
    model.load_state_dict(weights, strict=False)
    return f"initial weights from {source}" + (f", new: {', '.join(new)}" if new else "") + resized


def _and_more(found: list[str]) -> str:
    """How many there are beside those shown."""
    return f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""


def _is_of_the_head(key: str) -> bool:
    """Whether a tensor belongs to a classifier: timm's, or LV-ViT's for each patch."""
    return key.partition(".")[0] in ("head", "aux_head")


def _of_file(path: Path, averaged: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.initial_weights = {path}: there is no such file; give a checkpoint such as RUN/checkpoints/last.pt"
            f", or {PRETRAINED} for timm's own weights"
        )
    if not sealed.has_seal(path):
        return _foreign(path)
    try:
        return dict(checkpoints.weights_of(checkpoints.read(path), "ema" if averaged else "model"))
    except UserError as error:
        raise UserError(
            f"model.initial_weights = {path}, initial_averaged = {str(averaged).lower()}: {error}"
        ) from None


def _foreign(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_state_dict(str(path), use_ema=False, weights_only=True))
    except Exception as error:  # what a damaged or foreign file may raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.initial_weights = {path}: cannot be read as weights ({type(error).__name__}: {reason}); give a "
            "checkpoint of toe-train, a state_dict (.pt, .pth) or safetensors"
        ) from None


def _pretrained(name: str) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # no such weights, or whatever a download may raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.initial_weights = {PRETRAINED}: timm's weights of {name} are not to be had ({reason}); check the "
            "connection, or give a file"
        ) from None


def _resized(model: Any, positions: Tensor, wanted: Tensor) -> Tensor:
    prefix = getattr(model, "num_prefix_tokens", 1)
    grid = model.patch_embed.grid_size
    with_prefix = wanted.shape[1] == prefix + grid[0] * grid[1]
    return resample_abs_pos_embed(
        positions, list(grid), num_prefix_tokens=prefix if with_prefix else 0, interpolation="bicubic", antialias=False
    )
