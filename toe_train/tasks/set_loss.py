"""The loss of a set of boxes against an image's objects (DETR models/detr.py; YOLOS models/detector.py).

Shapes: B images, Q queries of each, C classes, n pairs of a query and an object, "no object" being logit C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from toe_train.tasks.boxes import corners, paired_giou
from toe_train.tasks.matching import Pairs, Target

NO_OBJECT_WEIGHT = 0.1  # of a query that stands for nothing, in the cross-entropy; the others have 1
CE_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0


class Sums(NamedTuple):
    """What the terms of the loss are quotients of, scalars: `ce / weight`, and `l1` and `giou` over the objects."""

    ce: Tensor
    weight: Tensor
    l1: Tensor
    giou: Tensor


def set_sums(logits: Tensor, boxes: Tensor, targets: Sequence[Target], pairs: Pairs) -> Sums:
    """Sums over a batch, in float32 with autocast or without.

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 4) cxcywh in shares of the image's sides.
        targets: of each image.
        pairs: see `match`.
    """
    device = logits.device
    with torch.autocast(device.type, enabled=False):
        logits, boxes = logits.float(), boxes.float()
        no_object = logits.shape[2] - 1
        rows = torch.cat([torch.full_like(queries, row) for row, (queries, _) in enumerate(pairs)])
        queries = torch.cat([queries for queries, _ in pairs])  # (n,)
        places = (rows * logits.shape[1] + queries).to(device, non_blocking=True)  # (n,) in B * Q
        chosen = [objects.to(device, non_blocking=True) for _, objects in pairs]
        labels = torch.cat([target["labels"][own] for target, own in zip(targets, chosen, strict=True)])
        wanted = torch.cat([target["boxes"][own] for target, own in zip(targets, chosen, strict=True)]).float()

        classes = torch.full((logits.shape[0] * logits.shape[1],), no_object, device=device)  # (B * Q,)
        classes[places] = labels
        weights = torch.ones(no_object + 1, device=device)
        weights[no_object] = NO_OBJECT_WEIGHT
        ce = F.cross_entropy(logits.flatten(0, 1), classes, weights, reduction="sum")
        found = boxes.flatten(0, 1)[places]  # (n, 4)
        giou = (1 - paired_giou(corners(found), corners(wanted))).sum()
        return Sums(ce, weights[classes].sum(), (found - wanted).abs().sum(), giou)


def set_losses(sums: Sums, num_boxes: Tensor | float) -> dict[str, Tensor]:
    """The terms and their weighted sum: `loss_ce`, `loss_bbox`, `loss_giou`, `total`, scalars.

    num_boxes: what the two terms of boxes are divided by, at least 1.
    """
    ce, bbox, giou = sums.ce / sums.weight, sums.l1 / num_boxes, sums.giou / num_boxes
    total = CE_WEIGHT * ce + L1_WEIGHT * bbox + GIOU_WEIGHT * giou
    return {"loss_ce": ce, "loss_bbox": bbox, "loss_giou": giou, "total": total}
