"""Pictures of which tokens Token Expansion keeps, and of what token labels say and a dense model restores.

Shapes: B images of H x W pixels, N = rows * columns patches, K kept ones, D width, C classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.expansion import TokenExpansion, kept_mask

SHOWN_SIDE = 224  # pixels of a picture's shorter side, at least; of 32 there is not much to see
# What is not kept: grey values squeezed to the middle, which differs from a dark and from a bright photo, and on it
# slanted lines, which differ from a grey one.
WASH = (0.25, 0.35)  # lowest value, and the range above it
HATCH = 0.3  # by which lines are brighter
GAP = 6  # pixels between pictures
GOLDEN_RATIO = 0.618034  # between the hues of two classes, so that neighbours differ


def as_pictures(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images (..., 3, H, W) as they are seen, in 0..1."""
    low, width = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images * width + low).clamp(0, 1)


@torch.no_grad()
def kept_token_pictures(
    model: nn.Module,
    expansion: TokenExpansion,
    images: Tensor,
    grid: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    noise: Tensor | None,
    patch_targets: Tensor | None = None,
) -> Tensor:
    """The images with the patches that are not kept washed out and hatched, see `hatched`.

    Args:
        model: the model that `expansion` is attached to, at the stage to show.
        expansion: its expansion.
        images: (B, 3, H, W), normalised.
        grid: rows and columns of patches.
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        noise: (B, N) draws for random initialisation; None where there is none.
        patch_targets: (B, N, C) soft targets of the patches, of a model with an output for each.

    Returns:
        (B, 3, h, w) in 0..1, enlarged to about SHOWN_SIDE pixels; without hatches where the stage keeps all tokens.
        With `patch_targets` (B, 3, h, 4 w), side by side: the image; each patch's likeliest class, a hue each, the
        brighter the likelier; the kept patches; and what the last norm gives for each patch, its three principal
        components as colours, zeros black.
    """
    kept, outputs = _look(model, expansion, images, noise)
    plain = enlarged(as_pictures(images, mean, std))
    shown = plain if kept is None else hatched(plain, kept_mask(kept, grid[0] * grid[1]), grid)
    if patch_targets is None:
        return shown
    features = outputs[0][:, expansion.num_prefix_tokens :].float()  # (B, N, D)
    panels = [
        _of_patches(cells, grid, plain) for cells in (_class_colours(patch_targets), _principal_colours(features))
    ]
    return torch.cat([plain, panels[0].to(plain.device), shown, panels[1]], dim=3)


def _look(
    model: nn.Module, expansion: TokenExpansion, images: Tensor, noise: Tensor | None
) -> tuple[Tensor | None, list[Tensor]]:
    """Kept positions (B, K), None for all, and what `model.norm`, if there is one, gave, with ToE on."""
    kept: list[Tensor | None] = []
    tokens: list[Tensor] = []
    watchers = [expansion.register_forward_hook(lambda module, args, output: kept.append(output[1]))]
    if isinstance(norm := getattr(model, "norm", None), nn.Module):
        watchers.append(norm.register_forward_hook(lambda module, args, output: tokens.append(output)))
    was_training, former = model.training, expansion.noise
    expansion.noise = noise
    model.eval()
    expansion.train()
    try:
        model(images)
    finally:
        for watcher in watchers:
            watcher.remove()
        expansion.noise = former
        model.train(was_training)
    return kept[0], tokens


def enlarged(images: Tensor, side: int = SHOWN_SIDE) -> Tensor:
    """Images (B, C, H, W) by the least whole factor that makes their shorter sides `side` pixels or more."""
    factor = max(1, -(-side // min(images.shape[-2:])))
    return images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def sheet(pictures: Sequence[Tensor], columns: int) -> Tensor:
    """Pictures (3, h, w) of any sizes side by side in rows of `columns`, (3, H, W), white between them."""
    height, width = (max(picture.shape[side] for picture in pictures) + GAP for side in (1, 2))
    cells = [
        F.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1]), value=1.0) for picture in pictures
    ]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % columns)
    rows = [torch.cat(cells[first : first + columns], dim=2) for first in range(0, len(cells), columns)]
    return torch.cat(rows, dim=1)[:, :-GAP, :-GAP]


def hatched(images: Tensor, keeps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images whose patches that are not kept are washed out and hatched, which shows on dark and on bright ones.

    Args:
        images: (B, 3, H, W) in 0..1.
        keeps: (B, N) bool.
        grid: rows and columns of patches.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    height, width = images.shape[-2:]
    period = max(4, height // grid[0] // 2)  # of the lines; two a patch
    down, across = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    lines = (down[:, None] + across) % period < max(1, period // 4)  # (H, W)
    washed = WASH[0] + WASH[1] * images.mean(1, keepdim=True) + HATCH * lines  # (B, 1, H, W)
    return torch.where(_of_patches(keeps.unsqueeze(2).float(), grid, images).bool(), images, washed)


def _of_patches(cells: Tensor, grid: tuple[int, int], images: Tensor) -> Tensor:
    """A colour or a value for each patch, (B, N, 3 or 1), as pictures of the images' size."""
    cells = cells.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, 3 or 1, rows, columns)
    return F.interpolate(cells, size=images.shape[-2:], mode="nearest")


def _class_colours(targets: Tensor) -> Tensor:
    """(B, N, C) -> (B, N, 3)."""
    likelihood, label = targets.max(dim=2)  # (B, N)
    hues = [colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.8, 1.0) for index in range(targets.shape[2])]
    colours = torch.tensor(hues, device=targets.device)[label]  # (B, N, 3)
    return colours * likelihood.clamp(0, 1).unsqueeze(2)


def _principal_colours(features: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, 3) in 0..1; black where all D are 0, elsewhere no channel below a quarter."""
    filled = features.abs().amax(dim=2) > 0  # (B, N)
    centred = features[filled] - features[filled].mean(dim=0)  # (n, D)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    values = centred @ directions[:3].T  # (n, 3)
    low, high = values.amin(dim=0), values.amax(dim=0)
    colours = features.new_zeros(*filled.shape, 3)
    colours[filled] = 0.25 + 0.75 * (values - low) / (high - low).clamp(min=1e-12)
    return colours
