"""Speed of a training step per stage of Token Expansion and of a curriculum, as ratios measured in one run.

A step is the training's own: normalising, a curriculum's crop of frequencies, forward, loss, backward, optimiser and
averaged model, on random images already on the device; loading and mixing are not in it. The stages take turns in every
round, so that what slows the machine down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from toe_train.analysis.flops import StageCost, make_countable, stage_cost
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, matmul_rate, peak_memory, take_turns, timing
from toe_train.data import BatchLayout, Pixels
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, plan_epochs
from toe_train.training.build_inputs import build_finish, example_batch
from toe_train.training.build_model import build_model
from toe_train.training.build_step import build_compile, build_step
from toe_train.training.clock import EpochClock
from toe_train.training.distributed import Processes
from toe_train.training.precision import precision_on


@dataclass(frozen=True)
class StageSpeed:
    """A stage's measured step.

    Attributes:
        batch: images.
        full_size: side in pixels of the full-token step's images, with which it is compared.
        image_size: side in pixels of what the model sees.
        cost: its FLOPs.
        step: its times, compared with the full-token step at full size and the same batch.
        flop_ratio: the full step's FLOPs / this stage's, attention counted, without ToE's own work.
        utilization: share of the device's measured rate of matrix products that the network's FLOPs (MFU), forward and
            backward, come to.
        peak_bytes: most memory that the device's tensors took during a step; None on a CPU.
    """

    batch: int
    full_size: int
    image_size: int
    cost: StageCost
    step: Timing
    flop_ratio: float
    utilization: float
    peak_bytes: int | None


@dataclass(frozen=True)
class StepBenchmark:
    """Result of `benchmark_step`; `matmul_rate` is the device's, in FLOPs per second at the step's precision."""

    model: str
    rounds: int
    precision: str
    compiled: bool
    threads: int
    matmul_rate: float
    stages: tuple[StageSpeed, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """For a reader."""
        rows = [
            (
                str(speed.batch),
                f"{speed.cost.stage}" if speed.cost.stage else "full",
                str(speed.image_size),
                str(speed.cost.tokens_kept),
                f"{speed.step.milliseconds:.1f}",
                f"{speed.step.spread[0]:.1f} .. {speed.step.spread[1]:.1f}",
                f"{1000 * speed.batch / speed.step.milliseconds:.1f}",
                f"{speed.step.speedup:.2f}x",
                f"{speed.step.speedup_spread[0]:.2f} .. {speed.step.speedup_spread[1]:.2f}",
                f"{speed.flop_ratio:.2f}x",
                f"{100 * speed.utilization:.1f} %",
                "-" if speed.peak_bytes is None else f"{speed.peak_bytes / 2**30:.2f}",
            )
            for speed in self.stages
        ]
        setting = (
            f"{self.model}, {self.precision}, {'compiled' if self.compiled else 'eager'}, {self.threads} CPU threads; "
            f"matrix products at {self.matmul_rate / 1e12:.2f} TFLOP/s"
        )
        heads = ("batch", "stage", "pixels", "tokens", "ms/step", "quartiles", "images/s", "measured", "quartiles")
        return f"{setting}\n{table((*heads, 'by FLOPs', 'MFU', 'GiB'), rows)}"


def benchmark_step(
    config: RunConfig,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
    sizes: Sequence[int] = (),
    num_classes: int = 1000,
    trace: Path | None = None,
) -> StepBenchmark:
    """Times the full step and those of every segment of the run that is cheaper.

    Args:
        config: a run.
        batches: images per step, even.
        rounds: timed steps per stage, after two that are not.
        device: where to compute.
        sizes: sides in pixels of the full step's images, in place of the configuration's; without a curriculum.
        num_classes: width of the classifier; ImageNet's by default.
        trace: file for a Chrome trace of one more step of each kind, by torch's profiler.

    Raises:
        UserError: sizes with a curriculum, or that the model does not take; a trace of more than one setting.
    """
    if trace is not None and len(sizes or [0]) * len(batches) > 1:
        raise UserError("--profile: a trace is of one --batch and one of --sizes")
    if sizes and config.curriculum is not None:
        raise UserError("--sizes: the curriculum of this configuration has sizes of its own; set curriculum=null")
    precision = precision_on(device, config.train.precision)
    rate, compiled = matmul_rate(device, precision), False
    found: list[StageSpeed] = []
    for size, batch in product(sizes or [config.model.image_size], batches):
        sized = config.model_copy(update={"model": config.model.model_copy(update={"image_size": size})})
        cases = _cases(sized)
        costs = _costs(sized, cases, num_classes)
        steps, compiled = _steps(sized, cases, batch, device, num_classes)
        times = take_turns(steps, rounds, device)
        for case, cost, own, step in zip(cases, costs, times, steps, strict=True):
            taken = timing(own, times[0])
            flops = 3 * 2 * cost.macs * batch  # backward is twice forward
            found.append(
                StageSpeed(
                    batch=batch,
                    full_size=size,
                    image_size=case.image_size,
                    cost=cost,
                    step=taken,
                    flop_ratio=costs[0].macs / cost.macs,
                    utilization=flops / (taken.milliseconds / 1000) / rate,
                    peak_bytes=peak_memory(step, device),
                )
            )
        if trace is not None:
            _write_trace(trace, cases, steps)
    return StepBenchmark(
        model=config.model.name,
        rounds=rounds,
        precision=precision,
        compiled=compiled,
        threads=torch.get_num_threads(),
        matmul_rate=rate,
        stages=tuple(found),
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


def _costs(config: RunConfig, cases: list[EpochPlan], num_classes: int) -> list[StageCost]:
    counted = {case.image_size: build_model(config, num_classes, case.image_size) for case in cases}
    for built in counted.values():
        make_countable(built.model)
    return [stage_cost(counted[case.image_size], case.image_size, case.stage) for case in cases]


def _steps(
    config: RunConfig, cases: list[EpochPlan], batch: int, device: torch.device, num_classes: int
) -> tuple[list[Callable[[], None]], bool]:
    """For each case a function that takes a step, cases of one size sharing a model; and whether they are compiled."""
    layout, here, compiled = BatchLayout(batch, batch), Processes(0, 1, device), False
    clock = EpochClock(device)
    made = {}
    for size in dict.fromkeys(case.image_size for case in cases):
        alike = [case for case in cases if case.image_size == size]
        built = build_model(config, num_classes, size)
        built.model.to(device).train()
        step = build_step(config, built, num_classes, layout, here, size)
        if compile_now := build_compile(config, built, step, alike[0].loaded_size, [case.stage for case in alike]):
            if reason := compile_now():
                raise UserError(f"torch.compile does not work here ({reason}); set train.compile=false")
            compiled = True
        pixels, labels = (part.to(device) for part in example_batch(config, batch, alike[0].loaded_size))
        finish = build_finish(config, size)
        _, targets = step.mixing(finish(pixels), labels, 0, 0, 0, 0)
        step.mixing = partial(_mixed_before, targets)
        made[size] = built.expansion, step, partial(_finished, finish, pixels)

    def take(case: EpochPlan) -> None:
        expansion, step, images = made[case.image_size]
        if expansion is not None:
            expansion.stage = case.stage
        step(images(), clock, 0, 0)

    return [partial(take, case) for case in cases], compiled


def _finished(finish: Callable[[Pixels], Tensor], pixels: Pixels) -> Iterator[tuple[Tensor, None]]:
    yield finish(pixels), None


def _mixed_before(targets: Any, images: Tensor, *_: Any) -> tuple[Tensor, Any]:
    return images, targets


def _write_trace(path: Path, cases: list[EpochPlan], steps: list[Callable[[], None]]) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        for case, step in zip(cases, steps, strict=True):
            with record_function(f"stage {case.stage} at {case.image_size} pixels"):
                step()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"--profile {path} cannot be written ({error}); name another file") from None
