"""Further scores of detection runs: average precision at two overlaps, and the terms of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from toe_train.analysis.runs import Row

# Of a run's last evaluation: key of the epoch's line, head, digits behind the point.
SCORES = (
    ("val_ap50", "AP50", 2),
    ("val_ap75", "AP75", 2),
    ("val_loss_ce", "class loss", 3),
    ("val_loss_bbox", "L1 loss", 4),
    ("val_loss_giou", "GIoU loss", 4),
)


def box_scores(rows: Sequence[Row]) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    """Title, heads and cells of a table of the rows that learn to find objects; nothing without one."""
    lines = [
        (row.name, *(_spread(row.values(key), digits) for key, _, digits in SCORES))
        for row in rows
        if row.headline == "ap"
    ]
    return [("Boxes", ["run", *(head for _, head, _ in SCORES)], lines)] if lines else []


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = "" if len(values) == 1 else f" ± {stdev(values):.{digits}f}"
    return f"{mean(values):.{digits}f}{spread}"
