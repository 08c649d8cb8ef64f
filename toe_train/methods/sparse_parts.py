"""Attention and perceptron of a block whose masked heads and units are not computed, and what updates of masks look at.

Where all weights of a unit are 0, its hidden value is its bias's alone, the same for every token. Where those of a
head are 0, its keys are all alike, and it gives every token the mean of its values, which is the mean token's value. So
these are computed once, and those once for an image, in place of once for each token: loss and gradients, those of what
is off among them, are the dense ones to rounding. The projection behind the heads is parted too.

Shapes: B images, N tokens, D width, H heads of width d, M hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.models import PlainAttention, PlainPerceptron

Split = tuple[Tensor, Tensor]  # numbers of what is on, and of what is off


class SparseAttention(PlainAttention):
    """timm's attention without the heads that are off, in training.

    Attributes:
        split: of the heads; None to compute all.
    """

    split: Split | None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.split is None or not self.training or attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)
        heads, off = self.split
        batch, tokens, width = x.shape
        weight = self.qkv.weight.view(3, self.num_heads, -1, width)  # (3, H, d, D)
        bias = None if self.qkv.bias is None else self.qkv.bias.view(3, self.num_heads, -1)  # (3, H, d)
        some = weight.index_select(1, heads).reshape(-1, width)  # (3 on d, D)
        qkv = F.linear(x, some, None if bias is None else bias.index_select(1, heads).reshape(-1))
        q, k, v = qkv.view(batch, tokens, 3, len(heads), -1).permute(2, 0, 3, 1, 4).unbind(0)  # (B, on, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.scale) @ k.transpose(2, 3)).softmax(dim=3) @ v
        resting = F.linear(
            x.mean(dim=1),  # (B, D)
            weight[2].index_select(0, off).flatten(0, 1),
            None if bias is None else bias[2].index_select(0, off).flatten(),
        )  # (B, off d)
        proj = self.proj.weight.view(width, self.num_heads, -1)  # (D, H, d)
        x = F.linear(mixed.transpose(1, 2).flatten(2), proj.index_select(1, heads).flatten(1), self.proj.bias)
        x = x + F.linear(resting, proj.index_select(1, off).flatten(1)).unsqueeze(1)
        return self.proj_drop(x)


class SparsePerceptron(PlainPerceptron):
    """timm's perceptron without the units that are off, in training.

    Attributes:
        split: of the units; None to compute all.
    """

    split: Split | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.split is None or not self.training:
            return super().forward(x)
        units, off = self.split
        first, second = self.fc1, self.fc2
        bias = first.bias
        hidden = F.linear(x, first.weight.index_select(0, units), None if bias is None else bias.index_select(0, units))
        out = F.linear(self.act(hidden), second.weight.index_select(1, units), second.bias)
        if bias is not None:
            out = out + F.linear(self.act(bias.index_select(0, off)), second.weight.index_select(1, off))
        return self.drop2(out)


def make_sparse(block: Any) -> None:
    """Puts both in the place of a plain block's own; they have its modules, and compute everything at first."""
    for name, sparse in (("attn", SparseAttention), ("mlp", SparsePerceptron)):
        twin: Any = sparse.__new__(sparse)
        twin.__dict__.update(getattr(block, name).__dict__)
        twin.split = None
        setattr(block, name, twin)


def why_not_sparse(block: Any) -> str | None:
    """Why a plain block's perceptron cannot be computed without some of its units; None where it can."""
    if type(block.mlp) is not PlainPerceptron or not isinstance(getattr(block.mlp, "norm", nn.Identity()), nn.Identity):
        return f"its perceptron is a {type(block.mlp).__name__}, or normalises"
    drop = block.mlp.drop1  # by `model.dropout`, whose mask goes by the place of a unit among all
    if not isinstance(drop, nn.Identity) and (type(drop) is not nn.Dropout or drop.p > 0):
        return "its perceptron has dropout behind the activation"
    return None


def split(mask: Tensor) -> Split:
    """Of a mask; waits for the device."""
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()


class HeadScores:
    """Of one block's heads, while `wanted`: what their outputs o and the gradients of these give in a training step.

    Hung before `attn.proj`, whose input is o. The scores come as the gradient of a leaf that o passes by, so graphs of
    torch.compile and recomputed activations have them too. Sums over micro-batches of means over images.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.wanted = False
        self.sink = torch.zeros(2, heads, requires_grad=True)

    def __call__(self, proj: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Lets o (B, N, H d) pass by the leaf."""
        if not (self.wanted and proj.training and args[0].requires_grad):
            return None
        return (_Watched.apply(args[0], self.sink), *args[1:])

    @property
    def found(self) -> Tensor:
        """(2, H): sums over images of | sum of o times its gradient |, by which heads die, and of the magnitudes of the
        gradient, by which they grow."""
        return torch.zeros_like(self.sink) if self.sink.grad is None else self.sink.grad

    def want(self, wanted: bool, device: torch.device) -> None:
        """Begins anew."""
        self.wanted = wanted
        if wanted or self.sink.device != device:
            self.sink = torch.zeros(2, self.heads, device=device, requires_grad=True)


class _Watched(torch.autograd.Function):
    """o as it is; what the heads' scores need of it and its gradient is the gradient of the leaf."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, sink: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        ctx.heads = sink.shape[1]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (output,) = ctx.saved_tensors
        by_head = gradient.float().unflatten(2, (ctx.heads, -1))  # (B, N, H, d)
        products = output.float().unflatten(2, (ctx.heads, -1)) * by_head
        score = products.sum(dim=(1, 3)).abs().mean(dim=0)
        return gradient, torch.stack([score, by_head.abs().sum(dim=(1, 3)).mean(dim=0)])
