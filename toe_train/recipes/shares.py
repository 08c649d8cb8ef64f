"""Stages as shares of the run, such as a third: exact fractions, and the epochs that they come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator


def share_of(value: Any) -> Fraction:
    """The exact fraction that a value of the YAML file means: `1/3`, or a decimal number as it is written.

    Raises:
        ValueError: it is no share: not a number, below 0, or 1 and more.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        share = Fraction(str(value).replace(" ", ""))  # a float's shortest text is the number that was typed
    except (ValueError, ZeroDivisionError):
        raise ValueError("must be a share of the run, such as 1/3 or 0.25") from None
    if not 0 <= share < 1:
        hint = f"; if epoch {value} is meant, use stage_epochs" if share > 1 else ""
        raise ValueError(f"must be a share of the run from 0 up and below 1, such as 1/3{hint}")
    return share


def first_epochs(shares: Sequence[Any], epochs: int) -> tuple[int, ...]:
    """The first epoch (from 0) of each stage: `floor(share * epochs)`, in exact fractions.

    A stage begins with the epoch in which its share of the run is reached. No rounding of floats enters: thirds of
    300 epochs are 0, 100 and 200, the paper's boundaries (section 4.1), thirds of 1000 are 0, 333 and 666, and thirds
    of 20 are 0, 6 and 13.

    Args:
        shares: of the run, one for each stage, as `share_of` takes them.
        epochs: of the run.

    Raises:
        ValueError: a share is none, they do not rise, or two stages begin with the same epoch.
    """
    exact = [share_of(share) for share in shares]
    told = f"[{', '.join(map(str, exact))}]"
    if exact != sorted(set(exact)):
        risen = ", ".join(map(str, sorted(set(exact))))
        raise ValueError(f"stage_shares={told} must rise from stage to stage; for instance [{risen}]")
    found = tuple(share.numerator * epochs // share.denominator for share in exact)
    if len(set(found)) < len(found):
        enough = math.ceil(1 / min(later - share for share, later in pairwise(exact)))
        raise ValueError(
            f"stage_shares={told} of epochs={epochs} come to stages that begin at {list(found)}, and each needs an "
            f"epoch of its own; use epochs={enough} or more, or fewer stages"
        )
    return found


def even_shares(count: int) -> str:
    """Stages of equal length, as the YAML file writes them: `[0, 1/3, 2/3]` for three."""
    return f"[{', '.join(str(Fraction(stage, count)) for stage in range(count))}]"


# Kept as text, `1/3`, which JSON and YAML take as it is.
Share = Annotated[str, BeforeValidator(lambda value: str(share_of(value)))]
