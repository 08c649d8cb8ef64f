"""COCO's average precision, by pycocotools.

Shapes: n detections of all images.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from toe_train.errors import UserError
from toe_train.tasks.matching import missing

# Columns of `rows`: image id, left, top, width and height in pixels, score, category id.
COLUMNS = 7
# What pycocotools gives, in its order: AP over all thresholds, sizes and areas, then average recall.
_PRECISION = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
STATISTICS = (*_PRECISION, "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def rows_of(image_id: int, found: dict[str, Any]) -> np.ndarray:
    """Detections of an image as rows (Q, 7) float64, from what `postprocess` gives for it.

    Labels are category ids. image_id: below 2^53, where float64 has every whole number.
    """
    assert abs(image_id) < 2**53, image_id
    boxes = found["boxes"].cpu()
    left, top, right, bottom = boxes.unbind(1)
    columns = (left, top, right - left, bottom - top, found["scores"].cpu(), found["labels"].cpu())
    ids = np.full(len(boxes), image_id, dtype=np.float64)
    return np.stack([ids, *(column.double().numpy() for column in columns)], axis=1)


def coco_statistics(ground_truth: dict[str, Any], rows: np.ndarray, image_ids: Sequence[int]) -> np.ndarray:
    """COCO's 12 numbers in 0..1, -1 where there is nothing to count, (12,) float64 (pycocotools COCOeval, bbox).

    Args:
        ground_truth: COCO's JSON, crowds among its annotations.
        rows: (n, 7) detections, see `COLUMNS`, of those images, each image's together; at most 100 an image count.
        image_ids: that were evaluated.

    Raises:
        UserError: pycocotools is not there.
    """
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert rows.shape == (len(rows), COLUMNS), rows.shape
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        found = truth.loadRes(rows) if len(rows) else COCO()
        evaluator = COCOeval(truth, found, iouType="bbox")
        evaluator.params.imgIds = sorted(image_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats)


def require_pycocotools() -> None:
    """Raises UserError where pycocotools is not there."""
    try:
        import pycocotools.mask  # noqa: F401  # the compiled part
    except ImportError:
        raise UserError(missing("pycocotools")) from None
