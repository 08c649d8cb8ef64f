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

    Each row is a weighted sum of h rows and each column of w columns, taken as two products: torch's own backward of
    bicubic resizing adds in another order on every run on a GPU, and takes longer.
    """
    num_patches = grid[0] * grid[1]
    assert tables.shape[1] == num_prefix + num_patches + num_suffix, (tables.shape, grid)
    prefix, patches, suffix = tables.split_with_sizes([num_prefix, num_patches, num_suffix], dim=1)
    image = patches.to(torch.promote_types(patches.dtype, torch.float32)).unflatten(1, grid)  # (L, h, w, D)
    rows, columns = (_bicubic(*sides, image) for sides in zip(grid, new_grid, strict=True))
    with torch.autocast(tables.device.type, enabled=False):
        image = columns @ image  # (L, h, w', D)
        resized = rows @ image.flatten(2)  # (L, h', w'*D)
    resized = resized.unflatten(2, (new_grid[1], -1)).flatten(1, 2).to(tables.dtype)  # (L, h'*w', D)
    return torch.cat([prefix, resized, suffix], dim=1)


def _bicubic(side: int, new_side: int, like: Tensor) -> Tensor:
    """What bicubic resizing of `side` cells to `new_side` takes of each: (new_side, side), in `like`'s type, there."""
    cells = torch.eye(side, dtype=like.dtype, device=like.device)[None, None]  # (1, 1, side, side)
    return F.interpolate(cells, size=(new_side, side), mode="bicubic", align_corners=False)[0, 0]
