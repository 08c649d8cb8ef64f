"""Speed of a training step per stage of Token Expansion, as ratios measured in one run.

A step is the training's own: forward, loss, backward, optimiser and averaged model, on random images already on the
device; loading and mixing are not in it. The stages take turns in every round, so that what slows the machine down
slows all of them.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import torch

from toe_train.analysis.flops import StageCost, make_countable, stage_cost
from toe_train.analysis.tables import table
from toe_train.data import BatchLayout
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.training.build_inputs import example_batch
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
        milliseconds: median of a step.
        spread: first and third quartile of the step, in milliseconds.
        speedup: median over the rounds of full-token step / this step.
        speedup_spread: first and third quartile of that ratio.
        flop_ratio: full-token FLOPs / this stage's, attention counted, without ToE's own work.
    """

    cost: StageCost
    milliseconds: float
    spread: tuple[float, float]
    speedup: float
    speedup_spread: tuple[float, float]
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
                str(speed.cost.tokens_kept),
                f"{speed.milliseconds:.1f}",
                f"{speed.spread[0]:.1f} .. {speed.spread[1]:.1f}",
                f"{1000 * self.batch / speed.milliseconds:.1f}",
                f"{speed.speedup:.2f}x",
                f"{speed.speedup_spread[0]:.2f} .. {speed.speedup_spread[1]:.2f}",
                f"{speed.flop_ratio:.2f}x",
            )
            for speed in self.stages
        ]
        setting = (
            f"{self.model}, {self.image_size} px, batch {self.batch}, {self.precision}, {self.threads} CPU threads"
        )
        heads = ("stage", "tokens", "ms/step", "quartiles", "images/s", "measured", "quartiles", "by FLOPs")
        return f"{setting}\n{table(heads, rows)}"


def benchmark_step(
    config: RunConfig, batch: int, rounds: int, device: torch.device, num_classes: int = 1000
) -> StepBenchmark:
    """Times the steps of every stage that drops tokens beside the full-token step.

    Args:
        config: a run with ToE.
        batch: images per step, even.
        rounds: timed steps per stage, after two that are not.
        device: where to compute.
        num_classes: width of the classifier; ImageNet's by default.

    Raises:
        UserError: the run has no ToE.
    """
    if config.expansion is None:
        raise UserError("expansion = null: there are no stages to compare; give a configuration with ToE")
    built = build_model(config, num_classes)
    built.model.to(device).train()
    expansion = built.expansion
    assert expansion is not None
    schedule = expansion.schedule
    stages = [0, *(stage for stage in range(1, schedule.num_stages + 1) if not schedule.is_dense(stage))]
    step = build_step(config, built, num_classes, BatchLayout(batch, batch), Processes(0, 1, device))
    if config.train.compile:
        built.model.compile()
    size = config.model.image_size
    _, labels = example_batch(config, batch)
    images, targets = step.mixing(torch.randn(batch, 3, size, size, device=device), labels.to(device), 0, 0, 0, 0)
    step.mixing = lambda *given: (images, targets)
    clock = EpochClock(device)

    def timed_step(stage: int) -> float:
        expansion.stage = stage
        _wait_for(device)
        begin = time.perf_counter()
        step(iter([(images, images)]), clock, 0, 0)
        _wait_for(device)
        return 1000 * (time.perf_counter() - begin)

    for _ in range(2):
        for stage in stages:
            timed_step(stage)
    times: dict[int, list[float]] = {stage: [] for stage in stages}
    for _ in range(rounds):
        for stage in stages:
            times[stage].append(timed_step(stage))

    counted = build_model(config, num_classes)
    make_countable(counted.model)
    costs = {stage: stage_cost(counted, size, stage) for stage in stages}
    return StepBenchmark(
        model=config.model.name,
        image_size=size,
        batch=batch,
        rounds=rounds,
        precision=precision_on(device, config.train.precision),
        compiled=config.train.compile,
        threads=torch.get_num_threads(),
        stages=tuple(_speed(costs[stage], times[stage], costs[0], times[0]) for stage in stages),
    )


def _speed(cost: StageCost, times: list[float], full_cost: StageCost, full_times: list[float]) -> StageSpeed:
    ratios = [full / own for full, own in zip(full_times, times, strict=True)]
    return StageSpeed(
        cost=cost,
        milliseconds=median(times),
        spread=_quartiles(times),
        speedup=median(ratios),
        speedup_spread=_quartiles(ratios),
        flop_ratio=full_cost.macs / cost.macs,
    )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
