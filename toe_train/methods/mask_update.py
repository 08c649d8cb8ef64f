"""How the masks of structured sparsity move: the released rules, as functions of masks and scores.

Shapes: L blocks, H heads, M hidden units.
"""

from __future__ import annotations

from torch import Tensor


def update(
    heads: Tensor,
    units: Tensor,
    rate: float | Tensor,
    head_score: Tensor,
    head_growth: Tensor,
    unit_score: Tensor,
    unit_growth: Tensor,
) -> tuple[Tensor, Tensor]:
    """The masks after an update, by the released rules; nothing is read back from the device.

    In each block ceil(rate x active) heads and units die, those of the lowest scores, and as many grow among the
    inactive ones, just killed ones included, those of the largest gradients. Units die and grow by thresholds, so that
    equal ones share their fate, and a threshold of 0 switches on all.

    Args:
        heads: (L, H) bool, active ones.
        units: (L, M) bool.
        rate: the death rate, 0..1.
        head_score: (L, H) by which heads die.
        head_growth: (L, H) by which they grow.
        unit_score: (L, M) by which units die.
        unit_growth: (L, M) by which they grow.

    Raises:
        ValueError: the rate is none.
    """
    if not isinstance(rate, Tensor) and not 0 <= rate <= 1:
        raise ValueError(f"rate={rate} must be from 0 to 1: the share of what is on that dies")
    return _update_heads(heads, rate, head_score, head_growth), _update_units(units, rate, unit_score, unit_growth)


def _deaths(active: Tensor, rate: float | Tensor) -> Tensor:
    """How many die in each block, (L, 1)."""
    return (active.sum(dim=1, keepdim=True).double() * rate).ceil().long()


def _update_heads(heads: Tensor, rate: float | Tensor, score: Tensor, growth: Tensor) -> Tensor:
    dying = _deaths(heads, rate)  # (L, 1)
    living = heads & (_ranks(score.masked_fill(~heads, float("inf"))) >= dying)
    grown = _ranks(-growth.masked_fill(living, -float("inf"))) < dying
    return living | grown


def _ranks(values: Tensor) -> Tensor:
    """The place of each value in its row when sorted, 0 for the lowest."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def _update_units(units: Tensor, rate: float | Tensor, score: Tensor, growth: Tensor) -> Tensor:
    dying = _deaths(units, rate)  # (L, 1)
    gone = dying + (~units).sum(dim=1, keepdim=True)  # (L, 1)
    threshold = score.sort(dim=1).values.gather(1, (gone - 1).clamp(min=0))
    living = (score > threshold) | (gone == 0)
    growth = growth.masked_fill(living, 0.0)
    threshold = growth.sort(dim=1, descending=True).values.gather(1, (dying - 1).clamp(min=0))
    return living | ((growth >= threshold) & (dying > 0))
