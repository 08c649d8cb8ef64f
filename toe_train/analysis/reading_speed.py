"""Speed of reading stored images at random, nothing decoded: from archives, beside the same images as loose files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from toe_train import data
from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, take_turns, timing
from toe_train.build.inputs import list_images
from toe_train.errors import UserError
from toe_train.recipes import RunConfig

IMAGES = 1000  # read in a round


@dataclass(frozen=True)
class ReadingBenchmark(Benchmark):
    """Result of `benchmark_reading`.

    Attributes:
        images: read in a round.
        mebibytes: of these, in the mean.
        readings: by place, a round in one process, beside the first.
    """

    images: int
    mebibytes: float
    readings: dict[str, Timing]

    def as_table(self) -> str:
        """For a reader."""
        rows = []
        for name, taken in self.readings.items():
            ratio, low, high = (f"{1 / value:.2f}" for value in (taken.speedup, *reversed(taken.speedup_spread)))
            rate = f"{1000 * self.images / taken.milliseconds:.0f}"
            rows.append(
                (name, rate, f"{1000 * self.mebibytes / taken.milliseconds:.0f}", f"{ratio}x", f"{low} .. {high}")
            )
        heads = ("images from", "images/s", "MiB/s", "the first is faster by", "quartiles")
        return f"one process, {self.images} images at random a round, nothing decoded\n{table(heads, rows)}"


def benchmark_reading(config: RunConfig, rounds: int, beside: Path | None) -> ReadingBenchmark:
    """Reads the run's training images in random order, and the same ones from an image folder.

    Args:
        config: a run on image files.
        rounds: times that some are read.
        beside: folder of the same data set, with train/ and val/; None for none.

    Raises:
        UserError: data of another kind, that is not there, or not the same.
    """
    if not config.data.of_files:
        raise UserError(f"data.kind = {config.data.kind} is not timed; set data.kind=tar or image_folder")
    sources = {f"{config.data.kind} {config.data.root}": _files(list_images(config)[0])}
    if beside is not None:
        other = data.FolderImages(beside / "train")
        if other.digest() != next(iter(sources.values())).digest():
            raise UserError(
                f"--beside {beside} holds other training images than {config.data.root}: name the same ones"
            )
        sources[f"image_folder {beside}"] = other
    first = next(iter(sources.values()))
    order = data.generator(config.seed, "reading")
    places = torch.randint(len(first), (1 << 20,), generator=order).tolist()  # a round goes on where the last one was
    lengths = [len(first.read(index)) for index in places[:IMAGES]]
    pieces: list[Callable[[], object]] = [partial(_read, source, iter(places)) for source in sources.values()]
    times = take_turns(pieces, rounds, torch.device("cpu"))
    return ReadingBenchmark(
        images=IMAGES,
        rounds=rounds,
        mebibytes=sum(lengths) / 2**20,
        readings={name: timing(own, times[0]) for name, own in zip(sources, times, strict=True)},
    )


def _files(images: data.ImageSource) -> data.IndexedImages:
    assert isinstance(images, data.IndexedImages), images
    return images


def _read(images: data.IndexedImages, places: Iterable[int]) -> None:
    for index in islice(places, IMAGES):
        images.read(index)
