"""Speed of a training step per stage of Token Expansion and of a curriculum, as ratios measured in one run.

A step is the training's own: normalising, a curriculum's crop of frequencies, forward, loss, backward, optimiser and
averaged model, on random images already on the device; loading and mixing are not in it. The stages take turns in every
round, so that what slows the machine down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toe_train.analysis.flops import StageCost, make_countable, stage_cost
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, take_turns, timing
from toe_train.data import BatchLayout, Pixels
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, plan_epochs
from toe_train.training.build_inputs import build_finish, example_batch
from toe_train.training.build_model import build_model
from toe_train.training.build_step import build_step
from toe_train.training.clock import EpochClock
from toe_train.training.distributed import Processes
from toe_train.training.precision import precision_on


@dataclass(frozen=True)
class StageSpeed:
    """A stage's measured step.

    Attributes:
        cost: its FLOPs.
        image_size: side in pixels of what the model sees.
        step: its times, compared with the full-token step at full size.
        flop_ratio: the full step's FLOPs / this stage's, attention counted, without ToE's own work.
    """

    cost: StageCost
    image_size: int
    step: Timing
    flop_ratio: float


@dataclass(frozen=True)
class StepBenchmark:
    """Result of `benchmark_step`."""

    model: str
    image_size: int
    batch: int
    rounds: int
    precision: str
    compiled: bool
    threads: int
    stages: tuple[StageSpeed, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """For a reader."""
        rows = [
            (
                f"{speed.cost.stage}" if speed.cost.stage else "full",
                str(speed.image_size),
                str(speed.cost.tokens_kept),
                f"{speed.step.milliseconds:.1f}",
                f"{speed.step.spread[0]:.1f} .. {speed.step.spread[1]:.1f}",
                f"{1000 * self.batch / speed.step.milliseconds:.1f}",
                f"{speed.step.speedup:.2f}x",
                f"{speed.step.speedup_spread[0]:.2f} .. {speed.step.speedup_spread[1]:.2f}",
                f"{speed.flop_ratio:.2f}x",
            )
            for speed in self.stages
        ]
        setting = f"{self.model}, batch {self.batch}, {self.precision}, {self.threads} CPU threads"
        heads = ("stage", "pixels", "tokens", "ms/step", "quartiles", "images/s", "measured", "quartiles", "by FLOPs")
        return f"{setting}\n{table(heads, rows)}"


def benchmark_step(
    config: RunConfig, batch: int, rounds: int, device: torch.device, num_classes: int = 1000
) -> StepBenchmark:
    """Times the steps of every segment of the run that is cheaper than the full one, beside that.

    Args:
        config: a run with ToE or a curriculum.
        batch: images per step, even.
        rounds: timed steps per stage, after two that are not.
        device: where to compute.
        num_classes: width of the classifier; ImageNet's by default.

    Raises:
        UserError: the run has neither.
    """
    full, *cheaper = cases = _cases(config)
    if not cheaper:
        raise UserError(
            "expansion = null and no curriculum: there are no stages to compare; give a configuration with one of them"
        )
    counted = {case.image_size: build_model(config, num_classes, case.image_size) for case in cases}
    for built in counted.values():
        make_countable(built.model)
    costs = [stage_cost(counted[case.image_size], case.image_size, case.stage) for case in cases]
    times = take_turns(_steps(config, cases, batch, device, num_classes), rounds, device)
    return StepBenchmark(
        model=config.model.name,
        image_size=full.image_size,
        batch=batch,
        rounds=rounds,
        precision=precision_on(device, config.train.precision),
        compiled=config.train.compile,
        threads=torch.get_num_threads(),
        stages=tuple(
            StageSpeed(cost, case.image_size, timing(own, times[0]), costs[0].macs / cost.macs)
            for case, cost, own in zip(cases, costs, times, strict=True)
        ),
    )


def _cases(config: RunConfig) -> list[EpochPlan]:
    """The full step, then an epoch of each kind that the run has besides, by size and by what ToE drops."""
    schedule = config.expansion.schedule() if config.expansion else None
    plans = plan_epochs(config)
    found = [replace(plans[0], stage=0, image_size=config.model.image_size, loaded_size=config.model.image_size)]
    for plan in plans:
        stage = 0 if schedule is None or schedule.is_dense(plan.stage) else plan.stage
        if all((case.image_size, case.stage) != (plan.image_size, stage) for case in found):
            found.append(replace(plan, stage=stage))
    return found


def _steps(
    config: RunConfig, cases: list[EpochPlan], batch: int, device: torch.device, num_classes: int
) -> list[Callable[[], None]]:
    """For each case a function that takes a step; cases of one size share a model."""
    layout, here = BatchLayout(batch, batch), Processes(0, 1, device)
    clock = EpochClock(device)
    steps = {}
    for case in cases:
        if case.image_size in steps:
            continue
        built = build_model(config, num_classes, case.image_size)
        built.model.to(device).train()
        step = build_step(config, built, num_classes, layout, here, case.image_size)
        if config.train.compile:
            built.model.compile()
        pixels, labels = (part.to(device) for part in example_batch(config, batch, case.loaded_size))
        finish = build_finish(config, case.image_size)
        mixed = step.mixing(finish(pixels), labels, 0, 0, 0, 0)
        step.mixing = partial(_mixed_before, mixed[1])
        steps[case.image_size] = built.expansion, step, partial(_finished, finish, pixels)

    def take(case: EpochPlan) -> None:
        expansion, step, given = steps[case.image_size]
        if expansion is not None:
            expansion.stage = case.stage
        step(given(), clock, 0, 0)

    return [partial(take, case) for case in cases]


def _finished(finish: Callable[[Pixels], Tensor], pixels: Pixels) -> Iterator[tuple[Tensor, None]]:
    yield finish(pixels), None


def _mixed_before(targets: Any, images: Tensor, *_: Any) -> tuple[Tensor, Any]:
    return images, targets
