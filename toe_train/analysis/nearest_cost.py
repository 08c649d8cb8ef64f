"""What costs nearest to a number of MACs: images of which size, how many tokens, and stages of how many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from toe_train.analysis.flops import make_countable, stage_cost
from toe_train.build.model import build_model
from toe_train.recipes import RunConfig, plain_run, randomly_dropping_run, side_of

TOLERANCE = 0.01
MOST_MOVED = 4  # boundaries between stages, of which each may move by an epoch


@dataclass(frozen=True)
class Part:
    """Consecutive epochs of a run that cost the same.

    Attributes:
        first: epoch, from 0.
        epochs: how many.
        macs: of an image in one of them.
        rand_augment: timm's string of them, None for none.
    """

    first: int
    epochs: int
    macs: int
    rand_augment: str | None


class PlainSteps:
    """Steps of plain training on smaller images.

    Args:
        config: a run, whose model it is.
        num_classes: width of the classifier.
        full_macs: of a step at full size.
    """

    def __init__(self, config: RunConfig, num_classes: int, full_macs: int) -> None:
        self._config = plain_run(config, config.epochs)
        self._num_classes = num_classes
        self._macs = {side_of(config.model.image_size): full_macs}

    def macs(self, side: int) -> int:
        """What one costs on an image of a side."""
        if side not in self._macs:
            built = build_model(self._config, self._num_classes, side)
            make_countable(built.model)
            self._macs[side] = stage_cost(built, side, 0).macs
        return self._macs[side]

    def nearest_side(self, macs: int) -> int:
        """The side, even and of whole patches, of the images on which one costs nearest to `macs`."""
        most, patch = side_of(self._config.model.image_size), self._patch
        step = patch if patch % 2 == 0 else 2 * patch
        sides = range(step, most + 1, step)
        low, high = 0, len(sides) - 1  # what one costs grows with the side
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.macs(sides[middle]) <= macs else (low, middle)
        return min(sides[low], sides[high], key=lambda side: abs(self.macs(side) - macs))

    @cached_property
    def _patch(self) -> int:
        built = build_model(self._config, self._num_classes)
        return side_of(self._config.model.image_size) // built.grid[0]


class DroppingSteps:
    """Steps with some of the tokens.

    Args:
        config: a run without Token Expansion, whose model it is.
        num_classes: width of the classifier.
        full_macs: of a step with all tokens.
    """

    def __init__(self, config: RunConfig, num_classes: int, full_macs: int) -> None:
        built = build_model(randomly_dropping_run(config, [0, 1, 2], [0.1, 0.25, 0.5, 0.75]), num_classes)
        make_countable(built.model)
        costs = [stage_cost(built, config.model.image_size, stage) for stage in (1, 2, 3)]
        self.num_tokens = built.num_tokens
        self._known = [(cost.tokens_kept, cost.macs + cost.expansion_macs) for cost in costs]
        self._full_macs = full_macs

    def macs(self, kept: int) -> float:
        """What one costs with `kept` tokens: a quadratic function of them, for attention, by three of its values."""
        if kept == self.num_tokens:
            return self._full_macs
        total = 0.0
        for number, value in self._known:
            term = float(value)
            for other, _ in self._known:
                term *= (kept - other) / (number - other) if other != number else 1
            total += term
        return total

    def nearest_tokens(self, macs: int) -> int:
        """With how many tokens one costs nearest to `macs`.

        Raises:
            ValueError: two are too many; a seed is one of them.
        """
        if macs < self.macs(2):
            raise ValueError("its cheapest steps cost less than those on two tokens")
        return min(range(2, self.num_tokens + 1), key=lambda kept: abs(self.macs(kept) - macs))


def keep_rates(counts: Sequence[int], num_tokens: int) -> list[float]:
    """Initial rate, half of the first stage's tokens, and keep rates, by which a schedule keeps these counts of tokens.

    They are a little more than the shares, and more so from stage to stage: counts come from differences of rates (see
    `ExpansionSchedule`), which must not round down.
    """
    numbers = [counts[0] // 2, *counts]
    return [
        1.0 if number == num_tokens else round((number + (place + 1) / (2 * len(numbers))) / num_tokens, 6)
        for place, number in enumerate(numbers)
    ]


def fitted_epochs(parts: Sequence[Part], epochs: int, macs: int) -> tuple[int, tuple[int, ...]]:
    """Number of epochs and first epochs of the parts that together cost `macs`, with the shares that they have now.

    All become longer or shorter by one factor; where that does not meet 1 %, boundaries move by an epoch too.

    Args:
        parts: in order, together `epochs`.
        epochs: of the run.
        macs: of all epochs together.

    Raises:
        ValueError: the epochs are too few for so many parts.
    """
    near = int(epochs * macs / sum(part.macs * part.epochs for part in parts))
    moves = (-1, 0, 1) if len(parts) - 1 <= MOST_MOVED else (0,)
    found = []
    for count, moved in product(range(near - 1, near + 3), product(moves, repeat=len(parts) - 1)):
        starts = (0, *(round(p.first * count / epochs) + by for p, by in zip(parts[1:], moved, strict=True)))
        lasting = [end - start for start, end in zip(starts, (*starts[1:], count), strict=True)]
        if min(lasting) < 1:
            continue
        off = abs(sum(part.macs * long for part, long in zip(parts, lasting, strict=True)) / macs - 1)
        found.append((sum(map(abs, moved)) if off <= TOLERANCE else len(parts), off, count, starts))
    if not found:
        raise ValueError(f"{near} epochs are too few for {len(parts)} stages")
    _, _, count, starts = min(found)
    return count, starts
