"""When tokens are dropped and how many: epoch -> stage -> token counts, in plain integers.

Source: the paper's section 3.2 (Eq 1 and 2). The counts follow the authors' released code, which the published numbers
come from: each stage adds `int(N * (difference of two rates))` tokens, so float subtraction may leave one token less
than `floor(rate * N)` (N = 196 and rates 0.4, 0.7 keep 136 tokens in stage 2, not 137).

This file imports the standard library only, so that a configuration can be checked without loading torch.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Metric = Literal["cosine", "euclidean", "manhattan", "euclidean_released", "manhattan_released"]
Initialization = Literal["spatial", "even", "random"]
Expansion = Literal["farthest", "uniform", "none"]
Restore = Literal["zero", "copy", "ignore"]

METRICS: tuple[str, ...] = get_args(Metric)
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)
EXPANSIONS: tuple[str, ...] = get_args(Expansion)
RESTORES: tuple[str, ...] = get_args(Restore)


def check_option(name: str, value: str, legal: tuple[str, ...]) -> None:
    """Raise a ValueError that names the nearest legal value when `value` is not one of `legal`."""
    if value not in legal:
        nearest = difflib.get_close_matches(str(value), legal, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name}={value!r} is not one of {', '.join(legal)}; the nearest is {nearest!r}")


@dataclass(frozen=True)
class ExpansionSchedule:
    """Stages of Token Expansion: when each begins and what share of the patch tokens it keeps.

    Stage 0 lasts until the first boundary and keeps every token; stage i (from 1) begins at epoch
    `stage_epochs[i - 1]` and keeps about `keep_rates[i - 1]` of the tokens. A last stage with rate 1.0 keeps all of
    them untouched.

    Args:
        stage_epochs: first epoch (0-based) of each stage, strictly increasing.
        keep_rates: share of the patch tokens kept in each stage, in (0, 1], strictly increasing.
        initial_keep_rate: share of the patch tokens chosen as seeds, above 0 and below the first keep rate
            (the paper uses half of it).
        repeats: sub-steps into which each stage's expansion is split (the paper's k, 2).

    Raises:
        ValueError: for a value outside these rules; the message gives the value, the rule and the remedy.
    """

    stage_epochs: Sequence[int]
    keep_rates: Sequence[float]
    initial_keep_rate: float
    repeats: int = 2

    def __post_init__(self) -> None:
        epochs = tuple(_integer("stage_epochs", epoch) for epoch in _items("stage_epochs", self.stage_epochs))
        rates = tuple(_rate("keep_rates", rate) for rate in _items("keep_rates", self.keep_rates))
        object.__setattr__(self, "stage_epochs", epochs)
        object.__setattr__(self, "keep_rates", rates)
        object.__setattr__(self, "initial_keep_rate", _rate("initial_keep_rate", self.initial_keep_rate))
        object.__setattr__(self, "repeats", _integer("repeats", self.repeats))
        if len(epochs) != len(rates):
            raise ValueError(
                f"stage_epochs={list(epochs)} has {len(epochs)} entries and keep_rates={list(rates)} has {len(rates)}: "
                "every stage needs one of each; give both the same length"
            )
        if epochs[0] < 0:
            raise ValueError(f"stage_epochs={list(epochs)} begins below 0: epochs count from 0; begin with 0 or more")
        _check_increasing("stage_epochs", epochs, "each stage must begin after the one before it")
        _check_increasing("keep_rates", rates, "each stage must keep more tokens than the one before it")
        if self.initial_keep_rate >= rates[0]:
            raise ValueError(
                f"initial_keep_rate={self.initial_keep_rate} is not below the first keep rate {rates[0]}: "
                f"the first stage expands from the seeds; the paper uses half of it, {rates[0] / 2:g}"
            )
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} must be 1 or more; the paper uses 2")

    @property
    def num_stages(self) -> int:
        """Number of stages, stage 0 not counted."""
        return len(self.keep_rates)

    @property
    def seed_stride(self) -> int:
        """Distance between spatial seeds: `int(1 // initial_keep_rate)`.

        As in the released code, this is the floor of a float division: 1 // 0.2 is 4.0, because 0.2 is stored slightly
        above 1/5.
        """
        return int(1 // self.initial_keep_rate)

    def stage(self, epoch: int) -> int:
        """Stage of an epoch (0-based): 0 before the first boundary, then 1, 2, ..."""
        epoch = _integer("epoch", epoch)
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must be 0 or more: epochs count from 0")
        return bisect_right(self.stage_epochs, epoch)

    def is_dense(self, stage: int) -> bool:
        """Whether a stage keeps every token untouched: stage 0, or the last one with keep rate 1.0."""
        self._check_stage(stage)
        return stage == 0 or (stage == self.num_stages and self.keep_rates[-1] == 1.0)

    def num_seeds(self, num_tokens: int) -> int:
        """Number of seeds among `num_tokens` patch tokens: `int(num_tokens * initial_keep_rate)`.

        Raises:
            ValueError: when that leaves no seed to expand from.
        """
        seeds = int(num_tokens * self.initial_keep_rate)
        if seeds < 1:
            needed = math.ceil(1 / self.initial_keep_rate)
            enough = math.ceil(1e4 / num_tokens) / 1e4 if num_tokens > 0 else 1.0
            raise ValueError(
                f"initial_keep_rate={self.initial_keep_rate} leaves no seed among {num_tokens} patch tokens: expansion "
                f"starts from at least one; use at least {needed} tokens (a larger image or smaller patches) or "
                f"initial_keep_rate={enough}"
            )
        return seeds

    def rounds(self, stage: int, num_tokens: int) -> tuple[int, ...]:
        """Tokens added in each sub-step of a stage, all earlier stages replayed first.

        Expansion starts from the seeds in every step, so stage s takes s * repeats sub-steps. A stage's tokens are
        split evenly; its last sub-step takes the remainder. Empty for a dense stage.
        """
        if self.is_dense(stage):
            return ()
        self.num_seeds(num_tokens)
        added: list[int] = []
        for budget in self._stage_budgets(num_tokens)[:stage]:
            share = budget // self.repeats
            added += [share] * (self.repeats - 1) + [budget - (self.repeats - 1) * share]
        return tuple(added)

    def num_kept(self, stage: int, num_tokens: int) -> int:
        """Patch tokens kept in a stage, out of `num_tokens`; all of them when the stage is dense."""
        if self.is_dense(stage):
            return num_tokens
        return self.num_seeds(num_tokens) + sum(self.rounds(stage, num_tokens))

    def _stage_budgets(self, num_tokens: int) -> list[int]:
        """Tokens that each stage adds, in the released code's arithmetic (float differences, then `int`)."""
        before = (self.initial_keep_rate, *self.keep_rates[:-1])
        increments = [rate - previous for rate, previous in zip(self.keep_rates, before, strict=True)]
        budgets = [int(num_tokens * increment) for increment in increments]
        # The last stage is counted from its own rate. Plain left-to-right addition, not sum(): from Python 3.12 on,
        # sum() compensates rounding errors, and the counts must not depend on the Python version.
        reached = self.initial_keep_rate + functools.reduce(operator.add, increments[:-1], 0.0)
        budgets[-1] = int(num_tokens * self.keep_rates[-1]) - int(num_tokens * reached)
        return budgets

    def _check_stage(self, stage: int) -> None:
        if not 0 <= stage <= self.num_stages:
            nearest = min(max(stage, 0), self.num_stages)
            raise ValueError(
                f"stage={stage} does not exist: this schedule has the stages 0 to {self.num_stages}; "
                f"the nearest is {nearest}"
            )


def _items(name: str, value: Sequence[object]) -> Sequence[object]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) == 0:
        example = [0, 100, 200] if name == "stage_epochs" else [0.5, 0.75, 1.0]
        raise ValueError(f"{name}={value!r} must be a list with one entry for each stage, such as {example}")
    return value


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        remedy = f"; write {round(value)}" if isinstance(value, float) and math.isfinite(value) else ""
        raise ValueError(f"{name}: {value!r} is not an integer{remedy}") from None


def _rate(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: {value!r} is not a number; give a share of the tokens such as 0.5")
    if not 0.0 < value <= 1.0:
        remedy = f"; if {value:g} % is meant, write {value / 100:g}" if 2.0 <= value <= 100.0 else ""
        raise ValueError(f"{name}: {value!r} is not in (0, 1]: it is the share of patch tokens kept{remedy}")
    return float(value)


def _check_increasing(name: str, values: tuple[float, ...], rule: str) -> None:
    for previous, value in itertools.pairwise(values):
        if value <= previous:
            raise ValueError(
                f"{name}={list(values)} is not increasing ({previous} is followed by {value}): {rule}; "
                f"for instance {sorted({value for value in values if value >= 0})}"
            )
