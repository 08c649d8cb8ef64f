"""Which query answers for which object: the assignment of least cost (DETR models/matcher.py, arXiv 2005.12872).

Shapes: B images, Q queries of each, C classes, M objects of an image, "no object" being logit C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toe_train.errors import UserError
from toe_train.tasks.boxes import corners, paired_giou

CLASS_COST, L1_COST, GIOU_COST = 1.0, 5.0, 2.0  # YOLOS main.py

Target = Mapping[str, Tensor]  # "labels" (M,) int64, "boxes" (M, 4) cxcywh in shares of the image's sides
Pairs = list[tuple[Tensor, Tensor]]  # for each image: queries and objects, (min(Q, M),) int64 each, queries rising


class BoxesNotFinite(ValueError):
    """What a model gives for some images has no cost.

    Attributes:
        images: their rows in the batch.
    """

    def __init__(self, images: Sequence[int]) -> None:
        named = ", ".join(map(str, images))
        super().__init__(
            f"logits or boxes of image {named} of the batch (from 0) are not finite, so that no query can be matched: "
            "the weights or the images are at fault; look at the steps before"
        )
        self.images = list(images)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Pairs:
    """Pairs of a query and an object, min(Q, M) an image, that cost the least together.

    A pair costs -p, p being the softmax over all C + 1 classes at the object's class; plus 5 times the boxes' L1
    distance; minus 2 times their generalised IoU, see `paired_giou`. All of it is float32, autocast or not. The costs
    go to the CPU once.

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 4) cxcywh in shares of the image's sides.
        targets: of each image; M may be 0, or more than Q.

    Raises:
        BoxesNotFinite: naming the images whose logits or boxes are not finite.
        UserError: scipy is not there.
    """
    linear_sum_assignment = _solver()
    counts = [len(target["labels"]) for target in targets]
    with torch.autocast(logits.device.type, enabled=False):
        shares, spans = logits.float().softmax(-1), boxes.float()
        costs = [
            _costs(image, spans[row], target) for row, (image, target) in enumerate(zip(shares, targets, strict=True))
        ]
        whole = (logits.isfinite().all(2) & boxes.isfinite().all(2)).all(1)  # (B,)
        width = max([1, *counts])
        sent = torch.stack([torch.nn.functional.pad(cost, (0, width - cost.shape[1])) for cost in costs])
        flat = torch.cat([whole.float(), sent.flatten()]).cpu()
    if broken := (flat[: len(counts)] == 0).nonzero().flatten().tolist():
        raise BoxesNotFinite(broken)
    table = flat[len(counts) :].view(len(counts), -1, width)
    pairs = []
    for cost, count in zip(table, counts, strict=True):
        queries, objects = linear_sum_assignment(cost[:, :count].numpy())
        pairs.append((torch.as_tensor(queries, dtype=torch.int64), torch.as_tensor(objects, dtype=torch.int64)))
    return pairs


def _costs(shares: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """(Q, M) of one image, from its softmax (Q, C + 1) and boxes (Q, 4)."""
    labels, wanted = target["labels"], target["boxes"].float()
    giou = paired_giou(corners(boxes)[:, None], corners(wanted))  # (Q, M)
    costs = L1_COST * torch.cdist(boxes, wanted, p=1) - CLASS_COST * shares[:, labels] - GIOU_COST * giou
    return costs.nan_to_num(torch.finfo(costs.dtype).max)  # of boxes whose distance float32 does not hold


def _solver():  # type: ignore[no-untyped-def]  # scipy has no types
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UserError(missing("scipy")) from None
    return linear_sum_assignment


def require_scipy() -> None:
    """Raises UserError where scipy is not there."""
    _solver()


def missing(package: str) -> str:
    """What to say where a package of the extra is not installed."""
    return f"detection needs {package}, which is not installed: python -m pip install 'toe-train[detection]'"
