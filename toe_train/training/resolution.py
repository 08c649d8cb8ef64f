"""Training at a smaller image than the run ends with: what the model sees, and its weights at another size.

A stage of a curriculum has a model of its own, whose positional embedding fits its number of patches. The next one, an
evaluation at full size and a resumed run take the weights over through `fit_positions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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


class Take(nn.Module):
    """Of images at several sizes, those at one."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, images: tuple[Tensor, ...]) -> Tensor:
        """The images at place `place`."""
        return images[self.place]


class BothSizes:
    """Evaluation of a model for smaller images: at its own size, and at the one that the run ends with.

    The images come at full size, and the model sees the low frequencies that it is trained on; or, where it is trained
    on images that the loader made smaller, in pairs of both sizes (`data.TwoSizes`).

    Args:
        image_size: that the model sees.
        in_pairs: whether the images come in pairs.
        build: makes the model for full size, when it is first asked for. It lends its forward pass alone, so that its
            parameters go to meta.
    """

    def __init__(self, image_size: int, in_pairs: bool, build: Callable[[], nn.Module]) -> None:
        self._smaller: nn.Module = Take(0) if in_pairs else LowFrequencyCrop(image_size)
        self._whole_images: nn.Module = Take(1) if in_pairs else nn.Identity()
        self._build = build
        self._whole: nn.Module | None = None
        self._buffers: dict[str, Tensor] = {}

    def at_own_size(self, model: nn.Module) -> nn.Module:
        """`model` on the smaller images."""
        return nn.Sequential(self._smaller, model).train(model.training)

    def at_full_size(self, model: nn.Module) -> nn.Module:
        """The weights of `model` on whole images."""
        if self._whole is None:
            whole = self._build()
            device = next(model.parameters()).device
            self._buffers = {name: buffer.to(device) for name, buffer in whole.named_buffers()}
            self._whole = whole.to("meta")
        weights = {**self._buffers, **fit_positions(model.state_dict(), self._whole)}
        return nn.Sequential(self._whole_images, WithWeights(self._whole, weights))


class WithWeights(nn.Module):
    """A model's forward pass with the weights of another one.

    Args:
        model: whose own weights are not read; it may be on meta.
        weights: a state_dict for it, with the buffers that are not in one.
    """

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.weights = weights

    def forward(self, images: Tensor) -> Any:
        """What the model gives for the images."""
        return functional_call(self.model, self.weights, (images,))


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
