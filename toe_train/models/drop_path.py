"""Drop path (stochastic depth) whose draws are given from outside, one per layer and sample.

timm's `DropPath` draws from the device's global generator, so which samples lose a branch depends on how the batch is
cut into processes and micro-batches. Here the training loop hands over the draws as a function of the sample's place
in the global batch instead. The arithmetic is timm's.

Shapes: L drop-path layers, B samples in the micro-batch.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class DropPathDraws:
    """The uniform draws of one micro-batch, shared by all layers of a model.

    Attributes:
        count: number of layers L that draw.
        uniform: (L, B) numbers in [0, 1) on the model's device, or None to draw from the global generator.
    """

    def __init__(self) -> None:
        self.count = 0
        self.uniform: Tensor | None = None


class GivenDropPath(nn.Module):
    """timm's `DropPath` with the draws of row `layer` of `draws.uniform`; drops where the draw is under `drop_prob`."""

    def __init__(self, drop_prob: float, scale_by_keep: bool, draws: DropPathDraws) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep
        self.draws = draws
        self.layer = draws.count
        draws.count += 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), whole samples zeroed in training."""
        if not self.training:
            return x
        uniform = self.draws.uniform
        draw = torch.rand(len(x), device=x.device) if uniform is None else uniform[self.layer]  # (B,)
        mask = (draw >= self.drop_prob).to(x.dtype)
        if self.scale_by_keep:
            mask = mask / (1 - self.drop_prob)
        return x * mask.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """Shown in the printed model."""
        return f"drop_prob={self.drop_prob:.3f}"


def give_drop_path(model: nn.Module) -> DropPathDraws:
    """Replaces every active timm `DropPath` in `model`, in module order, and returns the draws that they will read."""
    draws = DropPathDraws()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath) and child.drop_prob:
                setattr(parent, name, GivenDropPath(child.drop_prob, child.scale_by_keep, draws))
    return draws
