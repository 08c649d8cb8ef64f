"""The training steps that benchmarks time: each kind that a run has, on random images already on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toe_train.analysis.flops import StageCost, make_countable, stage_cost
from toe_train.build.inputs import build_finish, example_batch
from toe_train.build.model import build_model
from toe_train.build.step import build_compile, build_step
from toe_train.build.task import build_task
from toe_train.data import BatchLayout, Pixels
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, Size, config_at, plan_epochs
from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task


def step_cases(config: RunConfig) -> list[EpochPlan]:
    """The full step, then an epoch of each kind that the run has besides, by size and by what ToE drops."""
    plans = plan_epochs(config)
    size = config.model.image_size
    whole = replace(plans[0].curriculum, image_size=size, loaded_size=size, segment=plans[-1].segment)
    found = [replace(plans[0], stage=0, curriculum=whole)]
    for plan in plans:
        if all(kind(config, case) != kind(config, plan) for case in found):
            found.append(replace(plan, stage=kind(config, plan)[1]))
    return found


def kind(config: RunConfig, plan: EpochPlan) -> tuple[Size, int, int]:
    """An epoch's image size, stage, 0 where training is plain, and segment."""
    return plan.image_size, 0 if config.cheaper.is_dense(plan.stage) else plan.stage, plan.segment


def case_costs(config: RunConfig, cases: list[EpochPlan], num_classes: int) -> list[StageCost]:
    """FLOPs of each of the cases."""
    counted = {
        (case.image_size, case.segment): build_model(config_at(config, case), num_classes, case.image_size)
        for case in cases
    }
    for built in counted.values():
        make_countable(built.model)
    return [stage_cost(counted[case.image_size, case.segment], case.image_size, case.stage) for case in cases]


def timed_steps(
    config: RunConfig,
    cases: list[EpochPlan],
    batch: int,
    device: torch.device,
    num_classes: int,
    whole_graph: bool = False,
) -> tuple[list[Callable[[], None]], float | None]:
    """For each case a function that takes a step, cases of one size sharing a model; and the seconds of compiling.

    Those are None where the step is not compiled. `whole_graph`: see `compile_stages`.
    """
    mixed = config.mixes_images
    layout, here = BatchLayout(batch, batch if mixed else 1, mixed=mixed), Processes(0, 1, device)
    seconds: float | None = None
    clock = EpochClock(device)
    made = {}
    for size, segment in dict.fromkeys((case.image_size, case.segment) for case in cases):
        alike = [case for case in cases if (case.image_size, case.segment) == (size, segment)]
        built = build_model(config_at(config, alike[0]), num_classes, size)
        built.model.to(device).train()
        task = build_task(config, built, num_classes, layout)
        step = build_step(config, built, task, layout, here, size)
        stages = [case.stage for case in alike]
        if compile_now := build_compile(config, step, alike[0].loaded_size, stages, whole_graph):
            begin = time.perf_counter()
            if reason := compile_now():
                raise UserError(f"torch.compile does not work here ({reason}); set train.compile=false")
            seconds = (seconds or 0.0) + time.perf_counter() - begin
        step.method.begin_epoch(alike[0].epoch)
        pixels, labels = (part.to(device) for part in example_batch(config, task, batch, alike[0].loaded_size))
        finish = build_finish(config, size)
        _, targets = task.mix(finish(pixels), labels, 0, 0, 0, 0)
        step.task = _MixedBefore(task, targets)
        made[size, segment] = step, partial(_finished, finish, pixels)

    def take(case: EpochPlan) -> None:
        step, images = made[case.image_size, case.segment]
        step.method.stage = case.stage
        step(images(), clock, 0, 0)

    return [partial(take, case) for case in cases], seconds


def _finished(finish: Callable[[Pixels], Tensor], pixels: Pixels) -> Iterator[tuple[Tensor, None]]:
    yield finish(pixels), None


class _MixedBefore(Task):
    """A task whose images are mixed already, so that a step is timed without it.

    Args:
        task: whose loss it has.
        targets: of the mixed images.
    """

    def __init__(self, task: Task, targets: Any) -> None:
        self._task = task
        self._targets = targets

    def example_targets(self, batch: int) -> Any:
        """The task's."""
        return self._task.example_targets(batch)

    def mix(self, images: Tensor, targets: Any, epoch: int, step: int, rank: int, micro: int) -> tuple[Tensor, Any]:
        """Images as they are, and the given targets."""
        return images, self._targets

    def loss(self, output: Any, targets: Any) -> Tensor:
        """The task's."""
        return self._task.loss(output, targets)

    def terms(self) -> tuple[Tensor, ...]:
        """The task's."""
        return self._task.terms()

    def score(self, *given: Any) -> dict[str, float]:
        """The task's."""
        return self._task.score(*given)
