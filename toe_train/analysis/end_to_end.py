"""Speed of a whole training step in each part of a run, real images and loading included, beside the plain run's.

What a run does between two log lines: the loader's processes, copying, normalising, mixing, the step. The plain run,
all tokens of full-size images, comes first, then the parts, each with its own loader, as in the run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from toe_train import data
from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.endless import Endless
from toe_train.analysis.tables import size_text, table
from toe_train.analysis.timing import baseline_epochs, schedule_speedup
from toe_train.build.inputs import (
    batch_layout,
    build_finish,
    build_skipped,
    build_train_transform,
    check_data,
    list_images,
    of_data,
)
from toe_train.build.model import build_model
from toe_train.build.step import build_compile, build_step
from toe_train.build.task import build_task
from toe_train.recipes import EpochPlan, RunConfig, Size, config_at, plan_epochs, stretches
from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.precision import precision_on

WARM_UP = 2  # steps that do not count, after those whose batches the loader has ready beforehand


@dataclass(frozen=True)
class PartSpeed:
    """Speed of a part of a run.

    Attributes:
        stage: of ToE; None for the plain run.
        epochs: that it lasts; of the plain run, those that the run is compared with.
        image_size: side in pixels of what the model sees.
        tokens_kept: patch tokens from ToE's block on.
        images_per_second: over all timed steps, by the wall clock.
        compiled: whether the step is; one that cannot be is not, as in the run.
        wait_share: of the wall time, what the process waited for the loader. On a GPU the device may have been busy.
    """

    stage: int | None
    epochs: int
    image_size: Size
    tokens_kept: int
    images_per_second: float
    compiled: bool
    wait_share: float


@dataclass(frozen=True)
class EndToEndBenchmark(Benchmark):
    """Result of `benchmark_end_to_end`: the plain run's part first, `schedule_speedup` the whole run's over it."""

    model: str
    global_batch: int
    precision: str
    workers: int
    threads: int
    parts: tuple[PartSpeed, ...]
    schedule_speedup: float

    def as_table(self) -> str:
        """For a reader."""
        plain = self.parts[0]
        rows = [
            (
                "plain" if part.stage is None else str(part.stage),
                size_text(part.image_size),
                str(part.tokens_kept),
                "compiled" if part.compiled else "eager",
                f"{part.images_per_second:.1f}",
                f"{part.images_per_second / plain.images_per_second:.2f}x",
                f"{100 * part.wait_share:.0f} %",
            )
            for part in self.parts
        ]
        setting = f"{self.model}, batch {self.global_batch}, {self.precision}, {self.workers} loader processes"
        heads = ("stage", "pixels", "tokens", "step", "images/s", "over plain", "waiting for images")
        whole = f"whole schedule: {self.schedule_speedup:.3f}x, over {plain.epochs} plain epochs"
        return f"{setting}, {self.threads} CPU threads\n{table(heads, rows)}\n{whole}"


def benchmark_end_to_end(config: RunConfig, rounds: int, device: torch.device) -> EndToEndBenchmark:
    """Trains a new model on the run's images for some steps of the plain run and of each part of this one.

    A part that trains as the plain run does, as ToE's dense stage without a curriculum, has the plain one's figures.

    Args:
        config: the run.
        rounds: timed optimiser steps in each part.
        device: where to compute; one process.

    Raises:
        UserError: the data is not there, or the configuration cannot be built.
        RunFailed: more images than data.max_skipped cannot be read, where data.on_error=skip.
    """
    check_data(config)
    config = of_data(config, list_images(config))
    plain_run = config.model_copy(update={"expansion": None, "method": None, "curriculum": None})
    plain_plan = plan_epochs(plain_run)[0]
    plain = replace(_speed(plain_run, plain_plan, rounds, device), stage=None, epochs=baseline_epochs(config))
    parts = []
    for segment in stretches(plan_epochs(config)):
        plan = segment.plan
        dense = config.cheaper.is_dense(plan.stage)
        if dense and plan.curriculum == plain_plan.curriculum:
            part = plain
        else:
            part = _speed(config_at(config, plan), plan, rounds, device)
        parts.append(replace(part, stage=plan.stage, epochs=segment.epochs))
    return EndToEndBenchmark(
        model=config.model.name,
        global_batch=config.global_batch,
        rounds=rounds,
        precision=precision_on(device, config.train.precision),
        workers=config.data.workers,
        threads=torch.get_num_threads(),
        parts=(plain, *parts),
        schedule_speedup=schedule_speedup(
            1 / plain.images_per_second,
            plain.epochs,
            [(part.epochs, 1 / part.images_per_second) for part in parts],
        ),
    )


def _speed(config: RunConfig, plan: EpochPlan, rounds: int, device: torch.device) -> PartSpeed:
    with TemporaryDirectory() as place:
        skipped = build_skipped(config, Path(place) / "skipped_images.jsonl")
        speed = _trained(config, plan, rounds, device, skipped)
        if skipped is not None:
            skipped.require_within_limit()
    return speed


def _trained(
    config: RunConfig, plan: EpochPlan, rounds: int, device: torch.device, skipped: data.SkippedImages | None
) -> PartSpeed:
    images, _ = list_images(config)
    layout = batch_layout(config, 1)
    built = build_model(config, len(images.classes), plan.image_size)
    built.model.to(device).train()
    task = build_task(config, built, len(images.classes), layout)
    step = build_step(config, built, task, layout, Processes(0, 1, device), plan.image_size)
    compile_now = build_compile(config, step, plan.loaded_size, [plan.stage])
    compiled = compile_now is not None and compile_now() is None
    built.method.begin_epoch(plan.epoch)
    built.method.stage = plan.stage
    order = task.order(images, layout.global_batch, config.seed, config.augment.repeats, config.data.sampling)
    train_set = task.train_set(images, build_train_transform(config, plan.loaded_size), config.seed, skipped)
    sampler = Endless(data.TrainBatchSampler(order, layout, 0))
    loader = data.train_loader(train_set, sampler, config.data.workers, device.type == "cuda", task.collate)
    clock = EpochClock(device)
    batches = clock.waiting(DeviceBatches(loader, device, build_finish(config, plan.image_size), task.in_steps))
    ready = 2 * config.data.workers // layout.accumulation  # steps
    for number in range(ready + WARM_UP):
        step(batches, clock, plan.epoch, number)
    _, waited, _ = clock.read()
    begin = time.perf_counter()
    for number in range(rounds):
        step(batches, clock, plan.epoch, number)
    clock.read()  # waits for the device
    elapsed = time.perf_counter() - begin
    loader.close()
    return PartSpeed(
        stage=plan.stage,
        epochs=1,
        image_size=plan.image_size,
        tokens_kept=built.method.tokens_kept(built.num_tokens, plan.stage),
        images_per_second=rounds * layout.global_batch / elapsed,
        compiled=compiled,
        wait_share=(clock.data_wait - waited) / elapsed,
    )
