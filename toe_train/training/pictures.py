"""Pictures of what ToE keeps: the images with the merged-away patches dimmed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.expansion import TokenExpansion


@torch.no_grad()
def kept_token_pictures(
    model: nn.Module,
    expansion: TokenExpansion,
    images: Tensor,
    grid: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    noise: Tensor,
) -> Tensor:
    """The images with the patches that are not kept at a quarter of their brightness.

    Args:
        model: the model that `expansion` is attached to, at the stage to show.
        expansion: its expansion.
        images: (B, 3, H, W), normalised.
        grid: rows and columns of patches.
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        noise: (B, N) draws for random initialisation.

    Returns:
        (B, 3, H, W) in 0..1; unchanged where the stage keeps all tokens.
    """
    seen: list[Tensor | None] = []
    watcher = expansion.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    was_training, former = model.training, expansion.noise
    expansion.noise = noise
    model.eval()
    expansion.train()
    try:
        model.forward(images)  # not through __call__: a compiled model would compile once more for the pictures
    finally:
        watcher.remove()
        expansion.noise = former
        model.train(was_training)
    channels = (1, 3, 1, 1)
    plain = images * torch.tensor(std, device=images.device).view(channels)
    plain = (plain + torch.tensor(mean, device=images.device).view(channels)).clamp(0, 1)
    kept = seen[0]  # (B, K)
    if kept is None:
        return plain
    mask = torch.full((len(images), grid[0] * grid[1]), 0.25, device=images.device)  # (B, N)
    mask.scatter_(1, kept, 1.0)
    return plain * F.interpolate(mask.view(-1, 1, *grid), size=images.shape[-2:], mode="nearest")
