"""Training at a smaller image than the run ends with: what the model sees, and its weights at another size.

A stage of a curriculum has a model of its own, whose positional embedding fits its number of patches. The next one, an
evaluation at full size and a resumed run take the weights over through `fit_positions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.data import low_frequency_crop
from toe_train.models import resize_positions

POSITIONS = "pos_embed"


class LowFrequencyCrop(nn.Module):
    """Images (B, 3, S, S) -> (B, 3, size, size) float32, see `low_frequency_crop`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """The crop."""
        return low_frequency_crop(images, self.size)


def after_crop(model: nn.Module, size: int) -> nn.Module:
    """The model behind a crop to `size`, for images of any larger size."""
    return nn.Sequential(LowFrequencyCrop(size), model).train(model.training)


class FullSize:
    """A second model, at the size that the run ends with, to evaluate weights of a smaller one."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self._model: nn.Module | None = None

    def __call__(self, model: nn.Module) -> nn.Module:
        """The full-size model with the weights of `model`."""
        if self._model is None:
            self._model = self._build()
        self._model.load_state_dict(fit_positions(model.state_dict(), self._model))
        return self._model


def fit_positions(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state_dict with its positional embedding at the size of `model`'s; itself where that is the same."""
    own: Tensor | None = getattr(model, POSITIONS, None)
    if own is None or POSITIONS not in weights or weights[POSITIONS].shape == own.shape:
        return weights
    return {**weights, POSITIONS: _resized(weights[POSITIONS], model)}


def fit_moments(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state_dict with the moments of the positional embedding at the size of `model`'s."""
    own: Any = getattr(model, POSITIONS, None)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = next((number for number, parameter in enumerate(parameters) if parameter is own), None)
    if index is None or index not in state["state"]:
        return state
    moments = {
        name: _resized(value, model) if torch.is_tensor(value) and value.ndim == own.ndim else value
        for name, value in state["state"][index].items()
    }
    return {**state, "state": {**state["state"], index: moments}}


def _resized(value: Tensor, model: Any) -> Tensor:
    own, patches = model.pos_embed, model.patch_embed.num_patches
    return value if value.shape == own.shape else resize_positions(value, own.shape[1], own.shape[1] - patches)
