"""Speed of the loader: augmented training images per second, against timm's loader with the same transforms.

A batch is a micro-batch of the run in one process, up to what the loader hands over: bytes, which are normalised and
erased on the device. timm's loader is timed in both its forms: with normalised and erased float32 images, as DeiT has
them too, and with the bytes of its prefetcher. With repeated augmentation the views of an image that are in one
micro-batch are read and decoded once; timm's reads and decodes each image that it gives.

With augment.on_device our loader leaves most of the work to the device, so it is also timed with that work done: up to
the normalised images that the model takes. On a CPU one thread does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader
from timm.data.transforms import ToNumpy
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from toe_train import data
from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.endless import Endless
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, take_turns, timing, wait_for
from toe_train.build.inputs import (
    batch_layout,
    build_finish,
    build_timm_transform,
    build_train_transform,
    check_data,
    list_images,
    of_data,
)
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.training.device_batches import DeviceBatches

OWN = "ours"
FINISHED = "ours, finished on the device"


@dataclass(frozen=True)
class LoaderBenchmark(Benchmark):
    """Result of `benchmark_loader`.

    Attributes:
        one_process: by loader, a batch in one process, against our own.
        workers: loader processes.
        with_workers: by loader, images per second with them; empty without.
    """

    batch: int
    repeats: int
    one_process: dict[str, Timing]
    workers: int
    with_workers: dict[str, float]

    def as_table(self) -> str:
        """For a reader."""
        rows = []
        for name, taken in self.one_process.items():
            ratio, low, high = (f"{1 / value:.2f}" for value in (taken.speedup, *reversed(taken.speedup_spread)))
            rate = f"{1000 * self.batch / taken.milliseconds:.1f}"
            rows.append((name, "none", rate, f"{ratio}x", f"{low} .. {high}"))
        for name, images_per_second in self.with_workers.items():
            ratio = f"{self.with_workers[OWN] / images_per_second:.2f}"
            rows.append((name, str(self.workers), f"{images_per_second:.1f}", f"{ratio}x", ""))
        heads = ("loader", "processes", "images/s", "ours is faster by", "quartiles")
        return f"batches of {self.batch}, each image {self.repeats} times\n{table(heads, rows)}"


def benchmark_loader(config: RunConfig, rounds: int, device: torch.device) -> LoaderBenchmark:
    """Times batches of the run's training images: in one process, and with `data.workers` loader processes.

    Args:
        config: a run on an image folder with DeiT's order of transforms.
        rounds: micro-batches that are timed.
        device: that finishes images with augment.on_device.

    Raises:
        UserError: another kind of data, data that is not there, or data.on_error=skip.
    """
    if config.data.kind != "image_folder":
        raise UserError(f"data.kind = {config.data.kind}: timm's loader is compared on data.kind=image_folder alone")
    if config.augment.order != "deit" or config.augment.crop != "random_resized":
        raise UserError("augment: timm's loader knows order=deit with crop=random_resized alone")
    if config.data.on_error == "skip":
        raise UserError("data.on_error = skip: timm's loader cannot pass images over; set data.on_error=fail")
    config = config.model_copy(update={"token_labels": None})
    check_data(config)
    config = of_data(config, list_images(config))
    batch = batch_layout(config, 1).micro_batch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        makers: dict[str, Callable[[int], Iterator[Any]]] = {OWN: partial(_own_batches, config, batch)}
        if config.augment.on_device:
            makers[FINISHED] = partial(_finished_batches, config, batch, device)
        makers |= {
            "timm's, float32": partial(_timm_batches, config, batch, as_bytes=False),
            "timm's, bytes": partial(_timm_batches, config, batch, as_bytes=True),
        }
        pieces: list[Callable[[], object]] = [partial(next, maker(0)) for maker in makers.values()]
        times = take_turns(pieces, rounds, device)
        workers = config.data.workers
        rates = {
            name: _rate(maker(workers), batch, rounds, workers, device) for name, maker in makers.items() if workers
        }
    finally:
        torch.set_num_threads(threads)
    return LoaderBenchmark(
        batch=batch,
        rounds=rounds,
        repeats=config.augment.repeats,
        one_process={name: timing(own, times[0]) for name, own in zip(makers, times, strict=True)},
        workers=workers,
        with_workers=rates,
    )


def _own_batches(config: RunConfig, batch: int, workers: int) -> Iterator[Any]:
    images, _ = list_images(config)
    layout = batch_layout(config, 1)
    assert layout.micro_batch == batch, (layout, batch)
    order = data.GlobalOrder(len(images), layout.global_batch, config.seed, config.augment.repeats)
    sampler = data.TrainBatchSampler(order, layout, 0)
    yield from data.train_loader(
        data.TrainSet(images, build_train_transform(config), config.seed), Endless(sampler), workers
    )


def _finished_batches(config: RunConfig, batch: int, device: torch.device, workers: int) -> Iterator[Any]:
    yield from DeviceBatches(_own_batches(config, batch, workers), device, build_finish(config))


def _timm_batches(config: RunConfig, batch: int, workers: int, as_bytes: bool) -> Iterator[Any]:
    images = ImageFolder(str(Path(config.data.root) / "train"))
    loader = create_loader(
        images,
        config.model.image_size,
        batch,
        is_training=True,
        use_prefetcher=as_bytes,
        num_workers=workers,
        persistent_workers=workers > 0,
        use_multi_epochs_loader=workers > 0,
        device=torch.device("cpu"),
    )
    images.transform = build_timm_transform(config)  # in place of timm's own, which Pillow 13 refuses
    if as_bytes:
        steps = images.transform.transforms
        end = next(place for place, step in enumerate(steps) if isinstance(step, ToTensor))
        images.transform.transforms = [*steps[:end], ToNumpy()]
        loader = loader.loader  # what the prefetcher, which normalises and erases on the device, gets from the workers
    while True:
        yield from loader


def _rate(batches: Iterator[Any], batch: int, rounds: int, workers: int, device: torch.device) -> float:
    """Images per second once every loader process has given a batch, over a whole number of their turns."""
    turns = workers * -(-rounds // workers)
    for _ in range(2 * workers):
        next(batches)
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(turns):
        next(batches)
    wait_for(device)
    return batch * turns / (time.perf_counter() - begin)
