"""What a checkpoint costs: its size and the seconds that training waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from timm.utils import ModelEmaV3

from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.tables import table
from toe_train.build.model import build_model
from toe_train.build.step import build_optimizer
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.runs.checkpoints import Checkpoints


@dataclass(frozen=True)
class SavingBenchmark(Benchmark):
    """Result of `benchmark_saving`; `share` is of the time of a run that saves every `every_minutes`."""

    model: str
    megabytes: float
    seconds: float
    slowest_seconds: float
    every_minutes: float | None
    share: float | None

    def as_table(self) -> str:
        """For a reader."""
        share = "" if self.share is None else f"{100 * self.share:.2f} %, every {self.every_minutes:g} minutes"
        row = (
            self.model,
            f"{self.megabytes:.0f}",
            f"{self.seconds:.2f}",
            f"{self.slowest_seconds:.2f}",
            share,
        )
        return table(("model", "MB", "median s", "slowest s", "of the time"), [row])


def benchmark_saving(config: RunConfig, folder: Path, rounds: int, num_classes: int = 1000) -> SavingBenchmark:
    """Times saves of a run's whole state: weights, average, moments; summed, flushed to the disk and linked.

    Args:
        config: the run.
        folder: on the disk to measure; what is written there is removed.
        rounds: saves, after one that is not timed.
        num_classes: width of the classifier; ImageNet's by default.

    Raises:
        UserError: the folder cannot be made or written to.
        RunFailed: the disk does not take a checkpoint.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written to ({error.strerror}); name another folder") from None
    times = []
    with place:
        model = build_model(config, num_classes).model
        optimizer = build_optimizer(config, model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes the moments
        ema = ModelEmaV3(model) if config.train.ema_decay is not None else None
        state = {
            "model": model.state_dict(),
            "ema": ema.module.state_dict() if ema is not None else None,
            "optimizer": optimizer.state_dict(),
        }
        checkpoints = Checkpoints(Path(place.name))
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            checkpoints.save(state, is_best=False)
            times.append(time.perf_counter() - begin)
        size = checkpoints.last.stat().st_size
    every = config.checkpoint.every_minutes
    seconds = median(times[1:])
    return SavingBenchmark(
        model=config.model.name,
        rounds=rounds,
        megabytes=size / 1e6,
        seconds=seconds,
        slowest_seconds=max(times[1:]),
        every_minutes=every,
        share=seconds / (60 * every + seconds) if every else None,
    )
