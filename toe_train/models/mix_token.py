"""MixToken: regions of two images' tokens swapped after the patch embedding (LV-ViT, arXiv 2104.10858, section 3.3).

The same swap undoes itself, so that every position is given its own image's outputs again before the dense loss.
Nothing here waits for the device.

Shapes: B images, N = rows * columns cells of the patch grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenMix(NamedTuple):
    """Which cells of which two images are swapped.

    Two partners have the same box and name each other; an image that names itself stays as it is.

    Attributes:
        boxes: (B, 4) int64 top, left, bottom, right in cells, the last two exclusive; all 0 is an empty box.
        partners: (B,) int64 row of the image in this micro-batch that each image is mixed with.
    """

    boxes: Tensor
    partners: Tensor


def no_mix(batch: int, device: torch.device | None = None) -> TokenMix:
    """Empty boxes, every image its own partner."""
    return TokenMix(torch.zeros(batch, 4, dtype=torch.int64, device=device), torch.arange(batch, device=device))


def draw_box(
    grid: tuple[int, int], generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """A random box as CutMix and LV-ViT draw it, with lambda from Beta(1, 1), which is uniform.

    Around a uniform centre c it reaches from c - s // 2 to c + s // 2, with s = int(cells * sqrt(1 - lambda)) along
    each side, and is cut at the edges of the grid; so it is often smaller than its share 1 - lambda.

    Args:
        grid: rows and columns of cells.
        generator: source of three uniform numbers, on `device`; None is that device's global generator.
        device: where the box is made.

    Returns:
        (4,) int64 top, left, bottom, right; bottom and right exclusive.
    """
    share, *centres = torch.rand(3, generator=generator, device=device).unbind()
    starts, stops = [], []
    for cells, centre in zip(grid, centres, strict=True):
        middle, half = (cells * centre).long(), (cells * share.sqrt()).long() // 2
        starts.append((middle - half).clamp(min=0))
        stops.append((middle + half).clamp(max=cells))
    return torch.stack([*starts, *stops])


def swap_in_boxes(x: Tensor, mix: TokenMix, grid: tuple[int, int]) -> Tensor:
    """Give each image its partner's cells inside its box. Done twice, it gives `x` again.

    Args:
        x: (B, N, ...) one entry per cell, in raster order: tokens, logits or a mask.
        mix: boxes and partners of the B images.
        grid: rows and columns of cells.

    Returns:
        A new tensor like `x`.
    """
    rows, columns = (torch.arange(cells, device=x.device) for cells in grid)
    top, left, bottom, right = mix.boxes.unsqueeze(2).unbind(1)  # (B, 1) each
    in_rows = (rows >= top) & (rows < bottom)  # (B, rows)
    in_columns = (columns >= left) & (columns < right)  # (B, columns)
    inside = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).flatten(1)  # (B, N)
    inside = inside.view(*inside.shape, *[1] * (x.ndim - 2))  # (B, N, 1 ...)
    return torch.where(inside, x.index_select(0, mix.partners), x)
