"""Rows of runs against each other: differences seed by seed, how sure they are, and which rows to compare.

A seed fixes initial weights, order and augmentation; where training is steady, two runs of one seed differ by less than
two of any. The mean of the differences d_i over n seeds has the interval mean +- t(0.975, n - 1) s / sqrt(n), s their
deviation (Student's t; it takes them for normally distributed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from toe_train.analysis.runs import Row
from toe_train.errors import UserError

CONFIDENCE = 0.95
POWER = 0.8  # of the number of seeds that would show a difference
MOST_SEEDS = 1000
POINTS = 1.0  # of the difference whose seeds are told
DIGITS = 9  # of a difference: what is behind them is the machine's rounding of percentages
EQUAL = 0.05  # by which the FLOPs of rows of about equal compute differ at most


@dataclass(frozen=True)
class Comparison:
    """A row against another one, in the points of their score.

    Attributes:
        row: that is compared.
        other: what with.
        differences: row minus other, for each seed that both have.
    """

    row: Row
    other: Row
    differences: tuple[float, ...]

    @property
    def spread(self) -> float | None:
        """The deviation of the differences; None of a single seed, and where all are equal, as at chance."""
        return stdev(self.differences) or None if len(self.differences) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """In which the mean difference over all seeds lies, with 95 % confidence; None without a spread."""
        if self.spread is None:
            return None
        low, high = _scipy().ttest_1samp(self.differences, 0).confidence_interval(CONFIDENCE)
        return float(low), float(high)

    @property
    def finding(self) -> str:
        """What follows, in words."""
        if not self.differences:
            return "no seed in common"
        if len(self.differences) == 1:
            return "one seed shows nothing"
        if self.interval is None:
            return "no spread to judge by"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "no difference shown"

    @property
    def chance(self) -> float | None:
        """Of a mean as large as this where there is no difference (p, two-sided); None without a spread."""
        if self.spread is None:
            return None
        return float(_scipy().ttest_1samp(self.differences, 0).pvalue)

    @property
    def seeds_needed(self) -> int | None:
        """Seeds that would show a true difference of `POINTS` with 80 % probability, at this spread.

        The smallest n with (t(0.975, n - 1) + t(0.8, n - 1)) s / sqrt(n) <= POINTS; the difference that was seen is not
        in it. None without a spread, and over `MOST_SEEDS`.
        """
        if self.spread is None:
            return None
        for count in range(2, MOST_SEEDS + 1):
            quantiles = _quantile((1 + CONFIDENCE) / 2, count - 1) + _quantile(POWER, count - 1)
            if quantiles * self.spread / math.sqrt(count) <= POINTS:
                return count
        return None


def found_together(found: Sequence[Comparison]) -> list[bool]:
    """Of each comparison, whether a difference is shown when all of them are judged together.

    By Holm's method (1979), which calls any difference wrongly in one of 20 such tables at most: in the order of their
    chances, the k-th smallest of n has to stay within 0.05 / (n - k + 1), and the first that does not ends it.
    """
    chances = [(chance, place) for place, one in enumerate(found) if (chance := one.chance) is not None]
    shown = [False] * len(found)
    for rank, (chance, place) in enumerate(sorted(chances)):
        if chance > (1 - CONFIDENCE) / (len(chances) - rank):
            break
        shown[place] = True
    return shown


def compared(row: Row, other: Row) -> Comparison:
    """By the headline score of the last evaluation, of the finished runs of each that kept their values to the end."""
    scores = [
        {run.config.seed: run.last(f"val_{row.headline}") for run in part.counted if not run.is_mixed}
        for part in (row, other)
    ]
    shared = [seed for seed, score in scores[0].items() if None not in (score, scores[1].get(seed))]
    pairs = [(_number(scores[0][seed]), _number(scores[1][seed])) for seed in shared]
    return Comparison(row, other, tuple(round(own - former, DIGITS) for own, former in pairs))


def baseline_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Plain training of the row's model by its recipe, of its length; of plain rows, the longest and largest one."""
    plain = [other for other in rows if other.is_plain and other is not row and other.recipe == row.recipe]
    if row.is_plain:
        dearer = [other for other in plain if other.costs.whole_macs > row.costs.whole_macs]
        return max(dearer, key=lambda other: other.costs.whole_macs, default=None)
    size = row.config.model.image_size
    return next((other for other in plain if (other.lasts, other.config.model.image_size) == (row.lasts, size)), None)


def simple_equals(row: Row, rows: Sequence[Row]) -> list[Row]:
    """What a row has to beat: simpler ones of its model and recipe that cost about as many FLOPs.

    Plain training is simpler than all, and smaller images and random dropping are simpler than a method.
    """
    if row.is_plain:
        return []
    return [
        other
        for other in rows
        if (other.is_plain if row.is_simple else other.is_simple)
        and other.recipe == row.recipe
        and abs(row.costs.whole_macs / other.costs.whole_macs - 1) <= EQUAL
    ]


def against_rivals(rows: Sequence[Row]) -> list[Comparison]:
    """Token Expansion against each compared method: of its rows the one with most of its seeds, then of next FLOPs.

    Rows that lack a part of it are not it.
    """
    found = []
    for rival in (row for row in rows if row.config.method is not None):
        expanding = [row for row in rows if row.expands and row.has_default_tokens and row.recipe == rival.recipe]
        macs = rival.costs.whole_macs
        pairs = [compared(row, rival) for row in expanding]
        found += sorted(
            (pair for pair in pairs if pair.differences),
            key=lambda pair: (-len(pair.differences), abs(math.log(pair.row.costs.whole_macs / macs))),
        )[:1]
    return found


def comparisons(rows: Sequence[Row], against: str | None = None) -> list[Comparison]:
    """Each row against its baseline, and against the simpler ones that cost the same; then the compared methods.

    Finished rows alone.

    Args:
        rows: of the report.
        against: a row's name: all others of its model and recipe are compared with it instead.

    Raises:
        UserError: there is no finished row of that name.
    """
    finished = [row for row in rows if all(run.is_finished for run in row.counted)]
    if against is not None:
        named = next((row for row in finished if row.name == against), None)
        if named is None:
            there = ", ".join(row.name for row in finished) or "none"
            raise UserError(f"--against {against}: no finished row has that name; those that are: {there}")
        return [compared(row, named) for row in finished if row is not named and row.recipe == named.recipe]
    found = []
    for row in finished:
        base = baseline_of(row, finished)
        others = [*([base] if base else []), *(equal for equal in simple_equals(row, finished) if equal is not base)]
        found += [compared(row, other) for other in others]
    return found + against_rivals(finished)


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _quantile(share: float, freedom: int) -> float:
    """Of Student's distribution."""
    return float(_scipy().t.ppf(share, freedom))


def _scipy() -> Any:
    try:
        from scipy import stats  # takes a second to import, and few commands compare
    except ImportError:
        raise UserError("intervals of differences need scipy, which is not installed: pip install scipy") from None
    return stats
