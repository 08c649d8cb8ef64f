"""Speed of the training steps of several runs of one model, as ratios measured in one go: methods beside each other.

What a step is: step_speed.py. In every round the plain step comes first and then each kind of step of each run, so that
what slows the machine down slows all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.flops import StageCost
from toe_train.analysis.steps import case_costs, kind, step_cases, timed_steps
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, baseline_epochs, measured_speedup, schedule_speedup, take_turns, timing
from toe_train.data import BatchLayout
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, plan_epochs, stretches
from toe_train.runs.memory import release
from toe_train.training.precision import precision_on

ALIKE = (  # what a step is made of beside its method
    "model.name",
    "model.kwargs",
    "model.image_size",
    "model.drop_path",
    "model.dropout",
    "train.precision",
    "train.compile",
    "train.ema_decay",
    "optim.name",
    "optim.clip_grad",
    "task_kind",
)


@dataclass(frozen=True)
class MethodStep:
    """A kind of step of a run.

    Attributes:
        stage: of its method.
        epochs: of the run that have it.
        cost: its FLOPs.
        flop_ratio: the plain step's / its own, attention counted, without the method's own products.
        step: its times, compared with the plain step's.
    """

    stage: int
    epochs: int
    cost: StageCost
    flop_ratio: float
    step: Timing


@dataclass(frozen=True)
class MethodSpeed:
    """A run's steps, and the whole run over as many plain epochs: by the steps' ratios, and by FLOPs."""

    name: str
    method: str
    steps: tuple[MethodStep, ...]
    measured: float
    by_flops: float


@dataclass(frozen=True)
class MethodBenchmark(Benchmark):
    """Result of `benchmark_methods`; `plain` is the step of plain training."""

    model: str
    precision: str
    compiled: bool
    threads: int
    batch: int
    plain: Timing
    plain_cost: StageCost
    runs: tuple[MethodSpeed, ...]

    def as_table(self) -> str:
        """For a reader."""
        setting = (
            f"{self.model}, {self.precision}, {'compiled' if self.compiled else 'eager'}, batch {self.batch}, "
            f"{self.threads} CPU threads; plain step: {self.plain.milliseconds:.1f} ms (quartiles "
            f"{self.plain.spread[0]:.1f} .. {self.plain.spread[1]:.1f}), {self.plain_cost.macs / 1e9:.4f} GMACs/image"
        )
        rows = [
            (
                *(run.name, str(step.stage), str(step.epochs), str(step.cost.tokens_kept)),
                f"{step.cost.macs / 1e9:.4f}",
                f"{step.step.milliseconds:.1f}",
                f"{step.step.speedup:.2f}x",
                f"{step.step.speedup_spread[0]:.2f} .. {step.step.speedup_spread[1]:.2f}",
                f"{step.flop_ratio:.2f}x",
            )
            for run in self.runs
            for step in run.steps
        ]
        heads = ("run", "stage", "epochs", "tokens", "GMACs/image", "ms/step", "measured", "quartiles", "by FLOPs")
        whole = [(run.name, run.method, f"{run.measured:.3f}x", f"{run.by_flops:.3f}x") for run in self.runs]
        return "\n\n".join(
            (
                f"{setting}\n{table(heads, rows)}",
                "Whole runs, over as many plain epochs:\n" + table(("run", "method", "measured", "by FLOPs"), whole),
            )
        )


def benchmark_methods(
    configs: Mapping[str, RunConfig], batch: int, rounds: int, device: torch.device, num_classes: int = 1000
) -> MethodBenchmark:
    """Times the plain step of a model and those of every stage of some runs of it.

    Args:
        configs: the runs by name; they differ in their methods and their epochs.
        batch: images per step, even where images are mixed.
        rounds: timed steps of each kind, after two that are not.
        device: where to compute, which holds all the models.
        num_classes: width of the classifier; ImageNet's by default.

    Raises:
        UserError: the runs differ in more, or have a curriculum; an odd batch; the device's memory is too small.
    """
    _require_alike(configs)
    first = next(iter(configs.values()))
    BatchLayout(batch, batch, mixed=first.mixes_images)  # legal
    cases = {name: step_cases(config) for name, config in configs.items()}
    costs = {name: case_costs(configs[name], found, num_classes) for name, found in cases.items()}
    try:
        made = {
            name: timed_steps(
                configs[name], found if name in list(cases)[:1] else found[1:], batch, device, num_classes
            )
            for name, found in cases.items()
        }
        pieces = [step for steps, _ in made.values() for step in steps]
        times = iter(take_turns(pieces, rounds, device))
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch {batch}: the device's memory does not hold a step of each of these {len(configs)} runs; give "
            "fewer images, or fewer runs"
        ) from None
    finally:
        release()
    plain = next(times)
    measured = {name: [plain, *(next(times) for _ in found[1:])] for name, found in cases.items()}
    return MethodBenchmark(
        rounds=rounds,
        model=first.model.name,
        precision=precision_on(device, first.train.precision),
        compiled=any(seconds is not None for _, seconds in made.values()),
        threads=torch.get_num_threads(),
        batch=batch,
        plain=timing(plain, plain),
        plain_cost=next(iter(costs.values()))[0],
        runs=tuple(_speed(name, configs[name], cases[name], costs[name], measured[name]) for name in configs),
    )


def _speed(
    name: str, config: RunConfig, cases: Sequence[EpochPlan], costs: Sequence[StageCost], times: list[list[float]]
) -> MethodSpeed:
    """Of a run; the first case is plain training, which need not be part of it."""
    places = {kind(config, case): place for place, case in enumerate(cases)}
    parts = [(part.stage, part.epochs, places[kind(config, part.plan)]) for part in stretches(plan_epochs(config))]
    steps = tuple(
        MethodStep(stage, count, costs[place], costs[0].macs / costs[place].macs, timing(times[place], times[0]))
        for stage, count, place in parts
    )
    epochs = baseline_epochs(config)
    return MethodSpeed(
        name=name,
        method=_method(config),
        steps=steps,
        measured=measured_speedup(epochs, [(step.epochs, step.step) for step in steps]),
        by_flops=schedule_speedup(costs[0].macs, epochs, [(step.epochs, step.cost.macs) for step in steps]),
    )


def _method(config: RunConfig) -> str:
    if config.method is not None:
        return config.method.kind
    return "plain" if config.expansion is None else "token_expansion"


def _require_alike(configs: Mapping[str, RunConfig]) -> None:
    """Raises UserError where more than the method and the epochs tells the steps of two runs apart."""
    first, *others = configs
    for name in configs:
        if configs[name].curriculum is not None:
            raise UserError(
                f"--beside: {name} has a curriculum, whose images are of other sizes; time it alone, or set "
                "curriculum=null"
            )
    for other, key in product(others, ALIKE):
        one, own = (_value(configs[name], key) for name in (first, other))
        if one != own:
            raise UserError(
                f"--beside: {other} has {key}={own} and {first} has {one}; steps are compared of one model and recipe: "
                f"give {key}=VALUE for all of them, or another file"
            )


def _value(config: RunConfig, key: str) -> Any:
    """Of a dotted key; None where its section is."""
    found: Any = config
    for part in key.split("."):
        found = None if found is None else getattr(found, part)
    return found
