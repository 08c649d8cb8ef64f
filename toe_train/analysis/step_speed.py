"""Speed of a training step per stage of Token Expansion and of a curriculum, as ratios measured in one run.

A step is the training's own: normalising, a curriculum's crop of frequencies, forward, loss, backward, optimiser and
averaged model, on random images already on the device; loading and mixing are not in it. The stages take turns in every
round, so that what slows the machine down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.flops import StageCost
from toe_train.analysis.steps import case_costs, kind, step_cases, timed_steps
from toe_train.analysis.tables import size_text, table
from toe_train.analysis.timing import (
    Timing,
    baseline_epochs,
    matmul_rate,
    measured_speedup,
    peak_memory,
    schedule_speedup,
    take_turns,
    timing,
)
from toe_train.data import BatchLayout
from toe_train.errors import UserError
from toe_train.recipes import EpochPlan, RunConfig, Size, plan_epochs, stretches
from toe_train.runs.memory import release
from toe_train.training.precision import precision_on


@dataclass(frozen=True)
class StageSpeed:
    """A stage's measured step.

    Attributes:
        batch: images.
        full_size: size in pixels of the full-token step's images, with which it is compared.
        image_size: side in pixels of what the model sees.
        cost: its FLOPs.
        step: its times, compared with the full-token step at full size and the same batch; None where the device's
            memory did not hold that one, and no other stage is given then.
        flop_ratio: the full step's FLOPs / this stage's, attention counted, without ToE's own work.
        utilization: share of the device's measured rate of matrix products that the network's FLOPs (MFU), forward and
            backward, come to; None without a step.
        peak_bytes: most memory that the device's tensors took during a step; None on a CPU, and without a step.
    """

    batch: int
    full_size: Size
    image_size: Size
    cost: StageCost
    step: Timing | None
    flop_ratio: float
    utilization: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class ScheduleSpeed:
    """Speed-up of the whole run over `baseline_epochs` epochs of full-token steps, as its epochs weigh the stages.

    Attributes:
        batch: images.
        baseline_epochs: as many as the run has, or the curriculum's own.
        measured: by the stages' ratios.
        by_flops: attention counted.
    """

    batch: int
    baseline_epochs: int
    measured: float
    by_flops: float


@dataclass(frozen=True)
class StepBenchmark(Benchmark):
    """Result of `benchmark_step`.

    Attributes:
        whole_graph: whether a compiled step is one graph of the model, and not one of each kind of block.
        compile_seconds: of the first setting; None where it is not compiled.
        matmul_rate: of the device, in FLOPs per second at the step's precision.
        stages: the full step and the others, for each size and batch.
        schedules: for each batch at the configuration's own image size that the device's memory held.
    """

    model: str
    precision: str
    compiled: bool
    whole_graph: bool
    compile_seconds: float | None
    threads: int
    matmul_rate: float
    stages: tuple[StageSpeed, ...]
    schedules: tuple[ScheduleSpeed, ...]

    def _graphs(self) -> str:
        if self.compile_seconds is None:
            return "eager"
        return f"compiled {'as a whole' if self.whole_graph else 'by block'} in {self.compile_seconds:.0f} s"

    def as_table(self) -> str:
        """For a reader."""
        rows = []
        for speed in self.stages:
            stage = f"{speed.cost.stage}" if speed.cost.stage else "full"
            step, peak = speed.step, speed.peak_bytes
            measured = ("out of memory", "-", "-", "-", "-")
            if step is not None:
                measured = (
                    f"{step.milliseconds:.1f}",
                    f"{step.spread[0]:.1f} .. {step.spread[1]:.1f}",
                    f"{1000 * speed.batch / step.milliseconds:.1f}",
                    f"{step.speedup:.2f}x",
                    f"{step.speedup_spread[0]:.2f} .. {step.speedup_spread[1]:.2f}",
                )
            rows.append(
                (
                    *(str(speed.batch), stage, size_text(speed.image_size), str(speed.cost.tokens_kept)),
                    *measured,
                    f"{speed.flop_ratio:.2f}x",
                    "-" if speed.utilization is None else f"{100 * speed.utilization:.1f} %",
                    "-" if peak is None else f"{peak / 2**30:.2f}",
                )
            )
        setting = (
            f"{self.model}, {self.precision}, {self._graphs()}, {self.threads} CPU threads; "
            f"matrix products at {self.matmul_rate / 1e12:.2f} TFLOP/s"
        )
        heads = ("batch", "stage", "pixels", "tokens", "ms/step", "quartiles", "images/s", "measured", "quartiles")
        whole = [
            f"whole schedule, batch {own.batch}: {own.measured:.3f}x measured, {own.by_flops:.3f}x by FLOPs, over "
            f"{own.baseline_epochs} epochs of the full step"
            for own in self.schedules
        ]
        return "\n".join((setting, table((*heads, "by FLOPs", "MFU", "GiB"), rows), *whole))


def benchmark_step(
    config: RunConfig,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
    sizes: Sequence[Size] = (),
    num_classes: int = 1000,
    trace: Path | None = None,
    whole_graph: bool = False,
) -> StepBenchmark:
    """Times the full step and those of every segment of the run that is cheaper.

    A size and batch that the device's memory does not hold are noted, and the others go on.

    Args:
        config: a run.
        batches: images per step, even.
        rounds: timed steps per stage, after two that are not.
        device: where to compute.
        sizes: sides in pixels of the full step's images, in place of the configuration's; without a curriculum.
        num_classes: width of the classifier; ImageNet's by default.
        trace: file for a Chrome trace of one more step of each kind, by torch's profiler.
        whole_graph: of a compiled step, see `compile_stages`.

    Raises:
        UserError: sizes with a curriculum, or that the model does not take; an odd batch; a trace of more than one
            setting. All of it before anything is timed.
    """
    if trace is not None and len(sizes or [0]) * len(batches) > 1:
        raise UserError("--profile: a trace is of one --batch and one of --sizes")
    if sizes and config.curriculum is not None:
        raise UserError("--sizes: the curriculum of this configuration has sizes of its own; set curriculum=null")
    for batch in batches:
        BatchLayout(batch, batch if config.mixes_images else 1, mixed=config.mixes_images)  # legal
    settings = [_setting(config, size, num_classes) for size in sizes or [config.model.image_size]]
    precision = precision_on(device, config.train.precision)
    rate, seconds = matmul_rate(device, precision), list[float]()
    found: list[StageSpeed] = []
    schedules: list[ScheduleSpeed] = []
    for (sized, cases, costs), batch in product(settings, batches):
        full_size = sized.model.image_size
        measured = _measured(sized, cases, batch, rounds, device, num_classes, trace, whole_graph)
        release()
        if measured is None:
            found.append(StageSpeed(batch, full_size, full_size, costs[0], None, 1.0, None, None))
            continue
        times, peaks, took = measured
        seconds += [took] if took is not None else []
        for case, cost, own, peak in zip(cases, costs, times, peaks, strict=True):
            taken = timing(own, times[0])
            flops = 3 * 2 * cost.macs * batch  # backward is twice forward
            used, ratio = flops / (taken.milliseconds / 1000) / rate, costs[0].macs / cost.macs
            found.append(StageSpeed(batch, full_size, case.image_size, cost, taken, ratio, used, peak))
        if full_size == config.model.image_size and len(cases) > 1:
            schedules.append(_schedule(config, cases, costs, times, batch))
    return StepBenchmark(
        model=config.model.name,
        rounds=rounds,
        precision=precision,
        compiled=bool(seconds),
        whole_graph=whole_graph and bool(seconds),
        compile_seconds=seconds[0] if seconds else None,
        threads=torch.get_num_threads(),
        matmul_rate=rate,
        stages=tuple(found),
        schedules=tuple(schedules),
    )


def _setting(config: RunConfig, size: Size, num_classes: int) -> tuple[RunConfig, list[EpochPlan], list[StageCost]]:
    """The run at another image size, its cases and their costs."""
    sized = config.model_copy(update={"model": config.model.model_copy(update={"image_size": size})})
    cases = step_cases(sized)
    return sized, cases, case_costs(sized, cases, num_classes)


def _measured(
    config: RunConfig,
    cases: list[EpochPlan],
    batch: int,
    rounds: int,
    device: torch.device,
    num_classes: int,
    trace: Path | None,
    whole_graph: bool,
) -> tuple[list[list[float]], list[int | None], float | None] | None:
    """Each case's times and peak of memory, and the seconds of compiling; None where the memory does not hold one."""
    try:
        steps, seconds = timed_steps(config, cases, batch, device, num_classes, whole_graph)
        times = take_turns(steps, rounds, device)
        peaks = [peak_memory(step, device) for step in steps]
        if trace is not None:
            _write_trace(trace, cases, steps)
    except torch.OutOfMemoryError:
        return None
    return times, peaks, seconds


def _schedule(
    config: RunConfig, cases: list[EpochPlan], costs: list[StageCost], times: list[list[float]], batch: int
) -> ScheduleSpeed:
    """The whole run's speed-up, from each case's cost and times; the first one is the full step."""
    places = {kind(config, case): place for place, case in enumerate(cases)}
    parts = [(stretch.epochs, places[kind(config, stretch.plan)]) for stretch in stretches(plan_epochs(config))]
    epochs = baseline_epochs(config)
    return ScheduleSpeed(
        batch=batch,
        baseline_epochs=epochs,
        measured=measured_speedup(epochs, [(count, timing(times[place], times[0])) for count, place in parts]),
        by_flops=schedule_speedup(costs[0].macs, epochs, [(count, costs[place].macs) for count, place in parts]),
    )


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
