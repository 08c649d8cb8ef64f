"""The transformer of YOLOS: class token, patches and detection tokens, with positions that fit every image's size.

Shapes: B images, N = rows * columns patch tokens, Q detection tokens, T = 1 + N + Q, D width, L positional embeddings
between the blocks, one fewer than blocks.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from timm.layers import PatchEmbed, trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toe_train.models.positions import resize_tables

Grid = tuple[int, int]
Resizing = Literal["by_count", "by_grid"]


class AddPositions(nn.Module):
    """Adds positions to tokens: a module, so that what drops tokens can give it the positions of those that stay."""

    def forward(self, x: Tensor, *, positions: Tensor) -> Tensor:
        """Tokens (B, T, D), positions (1 or B, T, D) -> (B, T, D)."""
        return x + positions


class YolosBackbone(nn.Module):
    """The transformer: images (B, C, H, W) -> normed detection tokens (B, Q, D). Arguments as in `Yolos`."""

    def __init__(
        self,
        patch_embed: PatchEmbed,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_det_tokens: int,
        init_grid: Grid,
        mid_grid: Grid | None,
        position_resizing: Resizing,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.num_det_tokens = self.num_suffix_tokens = num_det_tokens
        self.init_grid = init_grid
        self.mid_grid = mid_grid
        self.position_resizing = position_resizing
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.det_token = nn.Parameter(torch.zeros(1, num_det_tokens, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(init_grid) + num_det_tokens, embed_dim))
        if mid_grid is not None:
            rows = 1 + math.prod(mid_grid) + num_det_tokens
            self.mid_pos_embed = nn.Parameter(torch.zeros(depth - 1, 1, rows, embed_dim))
        between = 0 if mid_grid is None else depth - 1
        self.mid_additions = nn.ModuleList(AddPositions() for _ in range(between))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=True,
                drop_path=drop_path_rate * index / max(depth - 1, 1),
                norm_layer=norm,  # type: ignore[arg-type]  # timm's own models give partials too
            )
            for index in range(depth)
        )
        self.norm = norm(embed_dim)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normed detection tokens (B, Q, D)."""
        grid = self._grid(images)
        patches = self.patch_embed(images)  # (B, N, D)
        cls_token, det_token = (token.expand(len(images), -1, -1) for token in (self.cls_token, self.det_token))
        x = torch.cat([cls_token, patches, det_token], dim=1)  # (B, T, D)
        x = x + self._resized(self.pos_embed, self.init_grid, grid)
        between = self._mid_positions(grid)
        for index, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
            if index < len(between):
                x = self.mid_additions[index](x, positions=between[index])
        return self.norm(x[:, -self.num_det_tokens :])

    def _grid(self, images: Tensor) -> Grid:
        """Rows and columns of the images' patches."""
        sides, patch = tuple(images.shape[2:]), self.patch_embed.patch_size
        if any(side % step or not side for side, step in zip(sides, patch, strict=True)):
            near = [max(round(side / step), 1) * step for side, step in zip(sides, patch, strict=True)]
            raise ValueError(
                f"images of {sides[0]} x {sides[1]} pixels (height x width): both must be multiples of the patch size "
                f"{patch[0]}, or the model would not see the edge; the nearest are {near[0]} x {near[1]}"
            )
        return sides[0] // patch[0], sides[1] // patch[1]

    def _resized(self, tables: Tensor, own: Grid, grid: Grid) -> Tensor:
        """Tables (L, T0, D) of the patch grid `own` as they are for `grid`: (L, T, D)."""
        by_count = self.position_resizing == "by_count"
        if grid == own or (by_count and math.prod(grid) == math.prod(own)):
            return tables
        return resize_tables(tables, own, grid, 1, self.num_det_tokens)

    def _mid_positions(self, grid: Grid) -> tuple[Tensor, ...]:
        """L tables (1, T, D), resized together."""
        if self.mid_grid is None:
            return ()
        # Not slices: the backward of a split is one pass, that of a slice fills a gradient of all tables.
        return self._resized(self.mid_pos_embed.squeeze(1), self.mid_grid, grid).split(1)

    def _initialise(self) -> None:
        """As published: deviation .02 for tokens, tables and linear layers; the patches' layer as PyTorch starts it."""
        tables = [self.pos_embed, self.cls_token, self.det_token]
        weights = [module for module in self.modules() if isinstance(module, nn.Linear)]
        if self.mid_grid is not None:
            tables.append(self.mid_pos_embed)
        for value in (*tables, *(linear.weight for linear in weights)):
            trunc_normal_(value, std=0.02)
        for linear in weights:
            nn.init.zeros_(linear.bias)
