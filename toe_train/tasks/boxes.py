"""Boxes as pure functions of tensors; torchvision's, which give the released code's numbers (DETR util/box_ops.py).

Shapes: n pairs of boxes. "cxcywh" is centre, width and height; "xyxy" the corners at the top left and bottom right.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) cxcywh as xyxy."""
    return box_convert(boxes, "cxcywh", "xyxy")


def paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of each of n pairs, (n,) in -1..1 (arXiv 1902.09630).

    first, second: (n, 4) xyxy, one of each pair with an area; in another unit of both nothing changes.
    """
    return generalized_box_iou(first, second).diagonal()
