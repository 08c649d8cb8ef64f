"""Detection (YOLOS, arXiv 2106.00666): which objects an image shows and where; a set of boxes, matched and compared.

The functions stand alone; `BoxDetection` trains and scores with them.

Shapes: B images, Q queries of each, C classes, M objects of an image, "no object" being logit C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toe_train.runs.default_group import mean_over_all
from toe_train.tasks.boxes import corners
from toe_train.tasks.matching import BoxesNotFinite, Target, match
from toe_train.tasks.set_loss import set_losses, set_sums

__all__ = ["BoxesNotFinite", "losses", "match", "postprocess"]


def losses(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], num_boxes: Tensor | float | None = None
) -> dict[str, Tensor]:
    """The loss of a batch and its terms, in float32, autocast or not (YOLOS models/detector.py).

    `loss_ce`: cross-entropy over all queries, unmatched ones against "no object" at a weight of 0.1, divided by the sum
    of the weights of this batch. `loss_bbox`: L1 distance of matched boxes, and `loss_giou`: 1 - generalised IoU,
    summed and divided by the number of objects. `total`: loss_ce + 5 loss_bbox + 2 loss_giou.

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 4) cxcywh in shares of the image's sides.
        targets: for each image "labels" (M,) int64 below C and "boxes" (M, 4) as above; M may be 0, or more than Q.
        num_boxes: what the terms of boxes are divided by; by default max(1, objects of all processes of torch's
            default group / processes), which all of them must then ask for together.

    Raises:
        BoxesNotFinite: a ValueError naming the images of which logits or boxes are not finite.
        UserError: scipy is not there.
    """
    if num_boxes is None:
        count = sum(len(target["labels"]) for target in targets)
        num_boxes = mean_over_all(torch.full((), float(count), device=logits.device)).clamp(min=1)
    return set_losses(set_sums(logits, boxes, targets, match(logits, boxes, targets)), num_boxes)


@torch.no_grad()
def postprocess(logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """What is found in each image: all its queries, none left out, cut or merged (YOLOS models/detector.py).

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 4) cxcywh in shares of the image's sides.
        sizes: (B, 2) height and width in pixels of the images as they were before they were resized.

    Returns:
        For each image "scores" (Q,), the largest softmax of a class, "labels" (Q,) int64, that class, and "boxes"
        (Q, 4) xyxy in pixels; float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
        height, width = sizes.to(logits.device, torch.float32).unbind(1)
        spans = corners(boxes.float()) * torch.stack([width, height, width, height], dim=1)[:, None]  # (B, Q, 4)
    return [
        {"scores": score, "labels": label, "boxes": span}
        for score, label, span in zip(scores, labels, spans, strict=True)
    ]
