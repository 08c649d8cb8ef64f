"""Drop path (stochastic depth) whose draws are given from outside, one per layer and sample.

timm's `DropPath` draws from the device's global generator, so which samples lose a branch depends on how the batch is
cut into processes and micro-batches. Here the training loop hands over the draws as a function of the sample's place
in the global batch instead. The arithmetic is timm's.

Shapes: L drop-path layers, B samples in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn


class Drawing(Protocol):
    """A layer whose draws are given: (B,) numbers in [0, 1), or None for the device's global generator."""

    uniform: Tensor | None


class GivenDraws:
    """The uniform draws of one micro-batch, handed to all layers of a kind in a model.

    Attributes:
        layers: those that draw, in order; their number is L.
    """

    def __init__(self) -> None:
        self.layers: list[Drawing] = []

    @property
    def count(self) -> int:
        """How many layers draw."""
        return len(self.layers)

    def give(self, uniform: Tensor | None) -> None:
        """Sets what the layers draw: numbers (L, B) in [0, 1), or None for the device's global generator."""
        for number, layer in enumerate(self.layers):
            layer.uniform = None if uniform is None else uniform[number]  # (B,)


class GivenDropPath(nn.Module):
    """timm's `DropPath`, and transformers', with given draws; drops where the draw is under `drop_prob`.

    Rate and draws are tensors and not numbers, so that a compiled block serves for all blocks.

    Attributes:
        uniform: (B,) numbers in [0, 1) on the input's device, or None to draw them.
    """

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.uniform: Tensor | None = None
        # Plain attributes: as buffers they would be saved, averaged and sent to the other processes.
        self.rate = torch.tensor(drop_prob)  # ()
        self.scale = torch.tensor(1 - drop_prob if scale_by_keep else 1.0)  # ()

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), whole samples zeroed in training."""
        if not self.training:
            return x
        draw = torch.rand(len(x), device=x.device) if self.uniform is None else self.uniform  # (B,)
        factor = ((draw >= self.rate) / self.scale).to(x.dtype)  # (B,)
        return x * factor.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """Shown in the printed model."""
        return f"drop_prob={float(self.rate):.3f}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GivenDropPath:
        """Moves rate and scale along with the model, in float32 whatever its type."""
        super()._apply(fn, recurse)
        device = fn(self.rate).device
        self.rate, self.scale = self.rate.to(device), self.scale.to(device)
        return self


def switch_off(block: nn.Module) -> None:
    """Lets the drop paths in `block` keep every sample; they still take their draws."""
    for layer in block.modules():
        if isinstance(layer, GivenDropPath):
            layer.rate.zero_()
            layer.scale.fill_(1.0)


def give_drop_path(model: nn.Module) -> GivenDraws:
    """Replaces every active `DropPath` of timm or transformers in `model`, in module order.

    Returns:
        The draws that they will read.
    """
    draws = GivenDraws()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # transformers has a class of its own for each model, all of which scale what they keep.
            rate = getattr(child, "drop_prob", None)
            if isinstance(rate, float) and rate and not any(child.children()):
                layer = GivenDropPath(rate, getattr(child, "scale_by_keep", True))
                setattr(parent, name, layer)
                draws.layers.append(layer)
    return draws
