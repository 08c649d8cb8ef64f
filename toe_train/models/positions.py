"""Positional embeddings at another number of patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(positions: Tensor, num_positions: int, num_prefix: int) -> Tensor:
    """Positions (1, P + n*n, D) of a square grid as (1, `num_positions`, D), where that is P + m*m.

    The patches' part is resized bilinearly, without aligned corners, the P = `num_prefix` others stay (EfficientTrain
    utils.py; docs/fidelity.md, "Change of image size").
    """
    prefix, patches = positions[:, :num_prefix], positions[:, num_prefix:]
    side, new_side = math.isqrt(patches.shape[1]), math.isqrt(num_positions - num_prefix)
    assert side * side == patches.shape[1], patches.shape
    assert new_side * new_side == num_positions - num_prefix, num_positions
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid.float(), size=(new_side, new_side), mode="bilinear", align_corners=False)
    resized = grid.flatten(2).mT.to(positions.dtype)  # (1, m*m, D)
    return torch.cat([prefix, resized], dim=1)


def resize_tables(
    tables: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int, num_suffix: int
) -> Tensor:
    """Positions (L, P + h*w + S, D) of `grid` (h, w) for `new_grid` (h', w'): (L, P + h'*w' + S, D).

    The patches' part is resized bicubically, without aligned corners and without antialiasing; the P = `num_prefix`
    rows before it and the S = `num_suffix` rows behind it stay (YOLOS models/backbone.py). Gradients reach `tables`.
    """
    num_patches = grid[0] * grid[1]
    assert tables.shape[1] == num_prefix + num_patches + num_suffix, (tables.shape, grid)
    prefix, patches, suffix = tables.split_with_sizes([num_prefix, num_patches, num_suffix], dim=1)
    image = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (L, D, h, w)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    resized = image.flatten(2).mT.to(tables.dtype)  # (L, h'*w', D)
    return torch.cat([prefix, resized, suffix], dim=1)
