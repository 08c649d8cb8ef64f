"""EfficientTrain's way to a smaller image: its low frequencies alone (arXiv 2211.09703, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def low_frequency_crop(images: Tensor, size: int) -> Tensor:
    """Return images (B, C, size, size) float32 of the lowest frequencies of images (B, C, S, S), as they are at S.

    The spectrum keeps its frequencies from -size/2 to size/2 - 1 along each axis, multiplied by (size / S)^2 so that
    the mean brightness stays (EfficientTrain utils.py; docs/fidelity.md, "Low-frequency crop"). size: even, at most S.
    Autocast does not touch it.
    """
    side = images.shape[-1]
    assert images.shape[-2] == side, images.shape
    assert size % 2 == 0, size
    assert size <= side, (size, side)
    if size == side:
        return images
    half = size // 2
    lowest = torch.cat([torch.arange(half), torch.arange(side - half, side)]).to(images.device, non_blocking=True)
    with torch.autocast(images.device.type, enabled=False):
        spectrum = torch.fft.fft2(images.float())  # (B, C, S, S), frequency 0 in the corner
        spectrum = spectrum.index_select(2, lowest).index_select(3, lowest)  # (B, C, size, size)
        return torch.fft.ifft2(spectrum).real * (size / side) ** 2
