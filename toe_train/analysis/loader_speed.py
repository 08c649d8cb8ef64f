"""Speed of the loader: augmented training images per second, against timm's loader with the same transforms.

A batch is a micro-batch of the run in one process. With repeated augmentation the views of an image that are in one
micro-batch are read and decoded once; timm's loader reads and decodes each image that it gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader
from torchvision.datasets import ImageFolder

from toe_train import data
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, take_turns, timing
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.training.build_inputs import batch_layout, build_train_set, build_train_transform, check_data


@dataclass(frozen=True)
class LoaderBenchmark:
    """Result of `benchmark_loader`.

    Attributes:
        own: of a batch in one process, against timm's.
        timm: of timm's.
        workers: loader processes.
        own_with_workers, timm_with_workers: images per second with them; None without.
    """

    batch: int
    rounds: int
    repeats: int
    own: Timing
    timm: Timing
    workers: int
    own_with_workers: float | None
    timm_with_workers: float | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """For a reader."""
        spread = f"{self.own.speedup_spread[0]:.2f} .. {self.own.speedup_spread[1]:.2f}"
        rates = [1000 * self.batch / part.milliseconds for part in (self.own, self.timm)]
        rows = [("none", f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{self.own.speedup:.2f}x", spread)]
        if self.own_with_workers is not None and self.timm_with_workers is not None:
            ratio = self.own_with_workers / self.timm_with_workers
            both = f"{self.own_with_workers:.1f}", f"{self.timm_with_workers:.1f}"
            rows.append((str(self.workers), *both, f"{ratio:.2f}x", ""))
        heads = ("loader processes", "images/s", "timm's, images/s", "faster", "quartiles")
        return f"batches of {self.batch}, each image {self.repeats} times\n{table(heads, rows)}"


def benchmark_loader(config: RunConfig, rounds: int) -> LoaderBenchmark:
    """Times batches of the run's training images: in one process, and with `data.workers` loader processes.

    Args:
        config: a run on an image folder with DeiT's order of transforms.
        rounds: micro-batches that are timed.

    Raises:
        UserError: another kind of data, or data that is not there.
    """
    if config.data.kind != "image_folder":
        raise UserError(f"data.kind = {config.data.kind}: timm's loader is compared on data.kind=image_folder alone")
    if config.augment.order != "deit" or config.augment.crop != "random_resized":
        raise UserError("augment: timm's loader knows order=deit with crop=random_resized alone")
    config = config.model_copy(update={"token_labels": None})
    check_data(config)
    batch = batch_layout(config, 1).micro_batch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        makers = [partial(_own_batches, config, batch), partial(_timm_batches, config, batch)]
        pieces: list[Callable[[], object]] = [partial(next, maker(0)) for maker in makers]
        own, other = take_turns(pieces, rounds, torch.device("cpu"))
        rates: list[float | None] = [None, None]
        if config.data.workers:
            rates = [_rate(maker(config.data.workers), batch, rounds, config.data.workers) for maker in makers]
    finally:
        torch.set_num_threads(threads)
    return LoaderBenchmark(
        batch=batch,
        rounds=rounds,
        repeats=config.augment.repeats,
        own=timing(own, other),
        timm=timing(other, other),
        workers=config.data.workers,
        own_with_workers=rates[0],
        timm_with_workers=rates[1],
    )


def _own_batches(config: RunConfig, batch: int, workers: int) -> Iterator[Any]:
    images, _ = data.open_datasets(config.data.kind, config.data.root)
    layout = batch_layout(config, 1)
    assert layout.micro_batch == batch, (layout, batch)
    order = data.GlobalOrder(len(images), layout.global_batch, config.seed, config.augment.repeats)
    sampler = data.TrainBatchSampler(order, layout, 0)
    loader = data.train_loader(build_train_set(config, images, None), sampler, workers)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def _timm_batches(config: RunConfig, batch: int, workers: int) -> Iterator[Any]:
    images = ImageFolder(str(Path(config.data.root) / "train"))
    size = config.model.image_size
    loader = create_loader(
        images, size, batch, is_training=True, use_prefetcher=False, num_workers=workers, persistent_workers=workers > 0
    )
    images.transform = build_train_transform(config)  # in place of timm's own, which Pillow 13 refuses
    while True:
        yield from loader


def _rate(batches: Iterator[Any], batch: int, rounds: int, workers: int) -> float:
    """Images per second once every loader process has given a batch, over a whole number of their turns."""
    turns = workers * -(-rounds // workers)
    for _ in range(2 * workers):
        next(batches)
    begin = time.perf_counter()
    for _ in range(turns):
        next(batches)
    return batch * turns / (time.perf_counter() - begin)
