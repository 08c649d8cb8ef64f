"""Runs that cost as many FLOPs as a given one and are simpler: what its method has to beat.

Plain training for fewer epochs, plain training on smaller images in stages of about the same epochs, and random
dropping of tokens at the same schedule. Compute is that of the forward passes of all epochs, attention and the method's
own work counted; an epoch has as many images in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from toe_train.analysis.comparison import EQUAL
from toe_train.analysis.flops import PlannedRun, plan_costs
from toe_train.analysis.nearest_cost import TOLERANCE, DroppingSteps, Part, PlainSteps, fitted_epochs, keep_rates
from toe_train.analysis.tables import size_text
from toe_train.build.preflight import build_parts
from toe_train.errors import UserError
from toe_train.recipes import (
    RunConfig,
    plain_run,
    plan_epochs,
    randomly_dropping_run,
    refusals,
    run_on_smaller_images,
    side_of,
    stretches,
)

Kind = Literal["shorter", "smaller", "random"]
TITLES: dict[Kind, str] = {
    "shorter": "Plain training for fewer epochs",
    "smaller": "Plain training on smaller images",
    "random": "Random dropping of tokens",
}


@dataclass(frozen=True)
class EqualRun:
    """A run of a kind.

    Attributes:
        kind: see `TITLES`.
        config: of it.
        words: what it is.
        share: its FLOPs over those of the run that it equals.
    """

    kind: Kind
    config: RunConfig
    words: str
    share: float

    @property
    def line(self) -> str:
        """It in a line."""
        return f"{self.words}, {self.share:.3f} of the FLOPs{self.how_near}"

    @property
    def how_near(self) -> str:
        """What is to be said of FLOPs that are not equal."""
        off = abs(self.share - 1)
        place = "at its schedule" if self.kind == "random" else "in whole epochs"
        near = "" if off <= TOLERANCE else f"; none nearer found {place}"
        return near if off <= EQUAL else f"{near}, and toe-tools report compares them with --against alone"


@dataclass(frozen=True)
class NoRun:
    """Why there is no run of a kind."""

    kind: Kind
    why: str

    @property
    def line(self) -> str:
        """It in a line."""
        title = TITLES[self.kind]
        return f"{title[:1].lower()}{title[1:]}: none, {self.why}"


def equal_runs(config: RunConfig, num_classes: int) -> list[EqualRun | NoRun]:
    """A run of each kind, or why there is none.

    Raises:
        UserError: `config` is plain training itself.
    """
    if config.expansion is None and config.method is None and config.curriculum is None:
        raise UserError(
            "--equal-compute: this run trains plainly, on all tokens of full-size images, and nothing is cheaper; give "
            "one with expansion, method or curriculum"
        )
    run = _Run(config, num_classes)
    makers: dict[Kind, Callable[[], RunConfig]] = {
        "shorter": run.shorter,
        "smaller": run.on_smaller_images,
        "random": run.dropping_randomly,
    }
    found: list[EqualRun | NoRun] = []
    for kind, make in makers.items():
        try:
            made = make()
            found.append(run.measured(kind, made))
        except ValueError as error:
            found.append(NoRun(kind, str(error).partition(";")[0]))  # the remedy is of keys that nobody gave
    return found


class _Run:
    """The run to be equalled, and its counterparts; they raise ValueError, with the reason, where there is none."""

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        self.planned = plan_costs(config, num_classes)
        self.macs, self.full = self.planned.whole_macs, self.planned.full.macs
        self.parts = [
            Part(
                part.stretch.first,
                part.stretch.epochs,
                part.cost.macs + part.cost.expansion_macs,
                part.stretch.plan.rand_augment,
            )
            for part in self.planned.stretches
        ]

    def measured(self, kind: Kind, made: RunConfig) -> EqualRun:
        """A counterpart with its FLOPs, where it is a run that can be trained."""
        if made == self.config:
            raise ValueError("it is the run itself")
        if odd := refusals(made):
            raise ValueError(odd[0])
        build_parts(made, world_size=1, num_classes=self.num_classes)
        costs = plan_costs(made, self.num_classes)
        if kind == "random" and all(part.cost.tokens_kept == costs.full.tokens_kept for part in costs.stretches):
            raise ValueError("it would keep all tokens")
        return EqualRun(kind, made, _words(kind, made, costs, self.config), costs.whole_macs / self.macs)

    def shorter(self) -> RunConfig:
        """Plain, for fewer epochs."""
        epochs = max(1, round(self.macs / self.full))
        whole = (self.config.curriculum and self.config.curriculum.baseline_epochs) or self.config.epochs
        if epochs >= whole:
            raise ValueError(f"its FLOPs come nearer to all {whole} epochs than to {whole - 1}")
        return plain_run(self.config, epochs)

    def on_smaller_images(self) -> RunConfig:
        """Plain, on images whose plain step costs what the run's step costs in each of its stages."""
        config = self.config
        if config.task_kind == "detection":
            raise ValueError("images of task.kind=detection have many sizes already")
        if config.expansion is None and config.method is None:
            raise ValueError("its images are smaller already")
        if config.curriculum and config.curriculum.budget_epochs:
            raise ValueError("its stages have schedules of their own (curriculum.budget_epochs)")
        steps, whole = PlainSteps(config, self.num_classes, self.full), side_of(config.model.image_size)
        sides = [steps.nearest_side(part.macs) for part in self.parts]
        if set(sides) == {whole}:
            raise ValueError("no smaller image of whole patches comes near to what its steps cost")
        if len(set(sides)) == 1:
            return plain_run(config, max(1, round(self.macs / steps.macs(sides[0]))), image_size=sides[0])
        if sides[-1] != whole or sides != sorted(sides):
            raise ValueError("images grow up to full size, and its steps do not come to cost as much as that")
        grouped = groupby(zip(sides, self.parts, strict=True), key=lambda both: (both[0], both[1].rand_augment))
        merged = [(side, augment, [part for _, part in alike]) for (side, augment), alike in grouped]
        parts = [
            Part(alike[0].first, sum(part.epochs for part in alike), steps.macs(side), augment)
            for side, augment, alike in merged
        ]
        epochs, firsts = fitted_epochs(parts, config.epochs, self.macs)
        stages = [(first, side, augment) for first, (side, augment, _) in zip(firsts, merged, strict=True)]
        return run_on_smaller_images(config, epochs, stages)

    def dropping_randomly(self) -> RunConfig:
        """Random dropping at the run's own schedule, or after block 1 at one that costs the same in each stage."""
        config = self.config
        if config.expansion is not None:
            return randomly_dropping_run(config)
        steps = DroppingSteps(config, self.num_classes, self.full)
        kept = [steps.nearest_tokens(part.macs) for part in self.parts]
        alike = [next(group) for _, group in groupby(zip(kept, self.parts, strict=True), key=lambda both: both[0])]
        counts = [count for count, _ in alike]
        if counts == [steps.num_tokens]:
            raise ValueError("its steps cost as much as those with all tokens")
        if counts != sorted(counts):
            raise ValueError("stages keep more and more tokens, and its steps become cheaper on the way")
        return randomly_dropping_run(config, [part.first for _, part in alike], keep_rates(counts, steps.num_tokens))


def _words(kind: Kind, config: RunConfig, costs: PlannedRun, equalled: RunConfig) -> str:
    """What a counterpart of the run `equalled` is."""
    firsts: dict[str, str] = {}  # epoch, from 1, with which each size begins
    for part in stretches(plan_epochs(config)):
        firsts.setdefault(size_text(part.plan.image_size), str(part.first + 1))
    kept = [str(part.cost.tokens_kept) for part in costs.stretches]
    tokens = f", {_listed(kept)} of {costs.full.tokens_kept} tokens" if kind == "random" else ""
    name = "random dropping" if kind == "random" else "plain"
    begun = f" from epochs {_listed(list(firsts.values()))} on" if len(firsts) > 1 else ""
    way = f", made smaller by {config.curriculum.downsampling}" if config.curriculum else ""
    own, full = size_text(config.model.image_size), size_text(equalled.model.image_size)
    seen = f", evaluated at {own} pixels and not {full}" if own != full else ""
    return f"{name}, {config.epochs} epochs, {_listed(list(firsts))} pixels{begun}{way}{tokens}{seen}"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
