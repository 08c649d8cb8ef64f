"""Comparisons of rows as a table, and what its figures are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from toe_train.analysis.comparison import MOST_SEEDS, Comparison, found_together

HEADS = ("run", "against", "FLOPs", "seeds", "difference", "95 % interval", "finding", "to show a point")
AGAINST_SIMPLER = (
    "against plain training, and against what is simpler and costs about as many FLOPs (within 5 %); at last Token "
    "Expansion against each method that it is compared with, by its row of most seeds in common and then of next FLOPs"
)
ALL = (
    "They are in points, of runs of one seed, with the 95 % interval of their mean (Student's t). *FLOPs*: the row's "
    "over the other's, the method's own work counted. *To show a point*: the number of seeds at which, with such a "
    "deviation, a true difference of one point would be told from 0 in 4 of 5 tries. Each interval stands alone: of "
    "twenty rows that differ in nothing, one lies beside 0. *Judged alone*: by its own interval, and not when "
    "all rows of the table are judged together (Holm's method, 5 %)."
)


def note(against: str | None) -> str:
    """What the table shows; `against` is the row that all are compared with, if there is one."""
    return f"Differences are {f'against {against}' if against else AGAINST_SIMPLER}. {ALL}"


def lines_of(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Its lines."""
    return [_line(one, together) for one, together in zip(found, found_together(found), strict=True)]


def _line(found: Comparison, together: bool) -> tuple[str, ...]:
    """Of one comparison; whether its difference is shown among all of the table."""
    alone = ", judged alone" if found.finding in ("higher", "lower") and not together else ""
    needed = "-" if found.spread is None else f"{found.seeds_needed or f'over {MOST_SEEDS}'} seeds"
    return (
        found.row.name,
        found.other.name,
        f"{found.row.costs.whole_macs / found.other.costs.whole_macs:.3f}x",
        str(len(found.differences)),
        f"{mean(found.differences):+.2f}" if found.differences else "-",
        "{:+.2f} .. {:+.2f}".format(*found.interval) if found.interval else "-",
        found.finding + alone,
        needed,
    )
