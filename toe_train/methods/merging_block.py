"""A transformer block that merges tokens between attention and perceptron, and counts a token by its patches.

What is merged: merge.py; in which models: token_merging.py.

Shapes: B images, T tokens, D width, d width of a head, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Between:
    """What one block hands to the next beside the tokens, in the model's last forward pass.

    A place of its own for each pair of blocks, so that a block whose activations are computed anew (gradient
    checkpointing) finds what it found before.

    Attributes:
        size: (B, T, 1), None before the first block.
        row: (B, T of the block before) the rows of its tokens.
    """

    def __init__(self) -> None:
        self.size: Tensor | None = None
        self.row: Tensor | None = None


class MergingBlock(nn.Module):
    """A block of timm's ViT or of LV-ViT that merges tokens between attention and perceptron.

    It has the block's own modules under their names, so that the model's state_dict stays what it was.

    Args:
        block: whose place it takes.
        merging: of the model, see `TokenMerging`.
        r: tokens to lose.
        before: what the block before hands over.
        after: what this one hands over.
        proportional: whether attention counts a token as many times as it has patches.
    """

    def __init__(
        self, block: nn.Module, merging: nn.Module, r: int, before: Between, after: Between, proportional: bool
    ) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.r, self.proportional = r, proportional
        self.before, self.after = before, after
        self._merging = (merging,)  # in a tuple, as it is a module of the model and not of each block
        self.branch_scale = 1 / getattr(block, "skip_lam", 1.0)
        self.train(block.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, D) -> (B, T-r, D)."""
        if attn_mask is not None or is_causal:
            raise ValueError("merged tokens have no mask: call the model without attn_mask, or detach the merging")
        size = self.before.size
        attended, metric = self._attend(self._through(x, "norm1"), size if self.proportional else None)
        x = torch.add(x, self._through(attended, "ls1", "drop_path1"), alpha=self.branch_scale)
        if self._merging[0].on:
            x, self.after.size, self.after.row = self._merging[0](x, metric, size, self.r)
        else:
            self.after.size = self.after.row = None
        return torch.add(x, self._through(x, "norm2", "mlp", "ls2", "drop_path2"), alpha=self.branch_scale)

    def _through(self, x: Tensor, *names: str) -> Tensor:
        """Through those of the block's modules that it has: LV-ViT's has no ls1 and ls2."""
        for name in names:
            if (module := self._modules.get(name)) is not None:
                x = module(x)
        return x

    def _attend(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attention of timm with a size for each key; its output (B, T, D) and the mean of the keys (B, T, d)."""
        attn: Any = self.attn
        batch, tokens, _ = x.shape
        heads = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        q, k, v = heads.unbind(0)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = None if size is None else size.log().to(q.dtype).view(batch, 1, 1, tokens)
        if attn.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            weights = (q * attn.scale) @ k.transpose(2, 3)  # (B, H, T, T)
            x = (weights if bias is None else weights + bias).softmax(dim=3) @ v
        x = x.transpose(1, 2).flatten(2)  # (B, T, D)
        return attn.proj_drop(attn.proj(x)), k.detach().mean(dim=1)
