"""Boxes as pure functions of tensors, which give the released code's numbers (DETR util/box_ops.py).

"cxcywh" is centre, width and height; "xyxy" the corners at the top left and bottom right.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) cxcywh as xyxy."""
    return box_convert(boxes, "cxcywh", "xyxy")


def paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU in -1..1 of boxes (..., 4) xyxy, the two broadcast against each other (arXiv 1902.09630).

    In another unit of both nothing changes. Where neither has an area that float32 holds, the formula gives 0/0; it is
    -1 there, without a gradient, as it is nearly for tiny boxes far apart.
    """
    inner = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    shared, around = _product(inner.clamp(min=0)), _product(outer.clamp(min=0))
    union = _product(first[..., 2:] - first[..., :2]) + _product(second[..., 2:] - second[..., :2]) - shared
    usable = (union > 0) & (around > 0) & around.isfinite()
    # Not only the result is replaced: the gradient of 0/0 is not finite, and times 0 neither.
    union, around = (torch.where(usable, area, 1.0) for area in (union, around))
    return torch.where(usable, shared / union - (around - union) / around, -1.0)


def _product(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]
