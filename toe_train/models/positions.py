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
