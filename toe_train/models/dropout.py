"""Dropout whose mask is a function of one given number per layer and sample.

torch draws the mask from the device's global generator, so that it depends on how the batch is cut into processes and
micro-batches. Here the training loop hands over a number for each sample and layer, as for drop path, and an element
drops by a hash of that number and its own place in the sample: the same on every device, in a compiled graph and where
activations are computed anew. Masks are never drawn on the host.

Shapes: L dropout layers, B samples in the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from toe_train.models.drop_path import GivenDraws

FIRST, SECOND, GOLDEN = 0x21F0AAAD, 0x735A2D97, 0x1E3779B1  # odd; the first two with their shifts are a known mixer's
HALF = 1 << 31
OF_ATTENTION = "attn_drop"  # timm's name of it
KEYS = 1 << 24  # that a float32 number in [0, 1) tells apart


class GivenDropout(nn.Module):
    """torch's `Dropout` with given draws: elements are zeroed with probability `p`, the others divided by 1 - p.

    Rate and draws are tensors and not numbers, so that a compiled block serves for all blocks.

    Attributes:
        uniform: (B,) numbers in [0, 1) on the input's device, or None to draw them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.uniform: Tensor | None = None
        # Plain attributes: as buffers they would be saved, averaged and sent to the other processes.
        self.threshold = torch.tensor(min(round(p * 2 * HALF), 2 * HALF - 1) - HALF, dtype=torch.int32)  # ()
        self.scale = torch.tensor(1 - p)  # ()

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), elements zeroed in training."""
        if not self.training:
            return x
        draw = torch.rand(len(x), device=x.device) if self.uniform is None else self.uniform  # (B,)
        kept = element_bits((draw * KEYS).int(), x[0].numel()) >= self.threshold  # (B, elements)
        return torch.where(kept.view(x.shape), x / self.scale, 0.0)

    def extra_repr(self) -> str:
        """Shown in the printed model."""
        return f"p={1 - float(self.scale):.3f}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GivenDropout:
        """Moves threshold and scale along with the model, in their own types."""
        super()._apply(fn, recurse)
        device = fn(self.scale).device
        self.threshold, self.scale = self.threshold.to(device), self.scale.to(device)
        return self


def element_bits(keys: Tensor, elements: int) -> Tensor:
    """Any int32 equally likely for each element of each sample, (B,) int32 keys -> (B, elements) int32.

    It is a bijective mixer of 32 bits (Wellons, "Prospecting for hash functions": shifts 16, 15, 15) over the element's
    place, into which the key enters twice, so that no two keys give the same row shifted. Products wrap.
    """
    keys = keys[:, None]  # (B, 1)
    bits = torch.arange(elements, dtype=torch.int32, device=keys.device) ^ (keys * GOLDEN)  # (B, elements)
    bits = (bits ^ _shifted(bits, 16)) * FIRST + keys
    bits = (bits ^ _shifted(bits, 15)) * SECOND
    return bits ^ _shifted(bits, 15)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shifted to the right with zeros, where torch's shift repeats the sign."""
    return (bits >> places) & ((1 << (32 - places)) - 1)


def give_dropout(model: nn.Module) -> GivenDraws:
    """Replaces every active `nn.Dropout` in `model`, in module order, and returns the draws that they will read.

    Dropout of attention's weights stays as it is: the fused kernels take its rate from the module, and draw themselves.
    """
    draws = GivenDraws()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p and name != OF_ATTENTION:
                layer = GivenDropout(child.p)
                setattr(parent, name, layer)
                draws.layers.append(layer)
    return draws
