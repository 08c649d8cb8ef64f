"""What a run's start costs before its first image: listing the data set, and the memory that the list takes.

Each start is a process of its own: it checks and lists as a run does, decoding nothing. Where the index is kept, a
second start finds it. torchvision's ImageFolder, a tuple for each image, is beside them for an image folder.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torchvision.datasets import ImageFolder

from toe_train import data
from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.tables import table
from toe_train.build.inputs import check_data, list_images
from toe_train.errors import UserError
from toe_train.recipes import RunConfig

FIRST, REMEMBERED, TORCHVISION = "first time", "remembered", "torchvision's ImageFolder"
MEMORY = Path("/proc/self/smaps_rollup")

Walk = Callable[[], object]  # through all images of a listing, reading none


class Start(NamedTuple):
    """A start.

    Attributes:
        seconds: of the clock.
        cpu_seconds: of the processor.
        peak_mebibytes: that listing takes for a time.
        held_mebibytes: that the list takes.
        worker_mebibytes: that a loader process adds once it has gone through the whole list.
    """

    seconds: float
    cpu_seconds: float
    peak_mebibytes: float
    held_mebibytes: float
    worker_mebibytes: float


@dataclass(frozen=True)
class StartBenchmark(Benchmark):
    """Result of `benchmark_start`.

    Attributes:
        place: kind and root of the data.
        images: of train and val.
        starts: medians.
    """

    place: str
    images: int
    starts: dict[str, Start]

    def as_table(self) -> str:
        """For a reader."""
        rows = [(name, *(f"{value:.1f}" for value in start)) for name, start in self.starts.items()]
        heads = ("start", "s", "s of the processor", "peak MiB", "MiB kept", "MiB more in a loader process")
        kept = (
            "" if REMEMBERED in self.starts else "\nthe index took too little time to be kept, or the data is too new"
        )
        return f"{self.place}, {self.images} images\n{table(heads, rows)}{kept}"


def benchmark_start(config: RunConfig, rounds: int) -> StartBenchmark:
    """Times starts of a run on image files, which take turns.

    Args:
        config: a run on image files.
        rounds: starts of each sort, after one that does not count.

    Raises:
        UserError: data of another kind or that is not there, or a system that does not tell a process's memory.
    """
    if not config.data.of_files:
        raise UserError(f"data.kind = {config.data.kind} is not timed; set data.kind=tar or image_folder")
    if not MEMORY.exists():
        raise UserError(f"--what start reads a process's memory from {MEMORY}, which Linux alone has")
    config = config.model_copy(update={"data": config.data.model_copy(update={"check_sample": 0, "relist": False})})
    found: dict[str, list[Start]] = {}
    with TemporaryDirectory() as cache:  # so that the system has all folders in memory
        _add({}, FIRST, partial(_own_start, config, cache))
    for _ in range(rounds):
        with TemporaryDirectory() as cache:
            if config.data.kind == "image_folder":
                _add(found, TORCHVISION, partial(_torchvision_start, config.data.root))
            images = _add(found, FIRST, partial(_own_start, config, cache))
            if any(Path(cache).rglob("*.npz")):
                _add(found, REMEMBERED, partial(_own_start, config, cache))
    return StartBenchmark(
        rounds=rounds,
        place=f"{config.data.kind} {config.data.root}",
        images=images,
        starts={name: Start(*map(median, zip(*starts, strict=True))) for name, starts in found.items()},
    )


def _add(found: dict[str, list[Start]], name: str, begin: Callable[[], tuple[Walk, int]]) -> int:
    with ProcessPoolExecutor(1) as process:
        start, images = process.submit(_measured, begin).result()
    found.setdefault(name, []).append(start)
    return images


def _measured(begin: Callable[[], tuple[Walk, int]]) -> tuple[Start, int]:
    before, clock, processor = _mebibytes("Rss"), time.perf_counter(), time.process_time()
    walk, images = begin()
    taken = time.perf_counter() - clock, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return Start(*taken, peak, _mebibytes("Rss") - before, _of_a_loader_process(walk)), images


def _of_a_loader_process(walk: Walk) -> float:
    """Return the MiB that a forked process takes for itself as it goes through the list."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        gc.disable()  # which would copy what the list has nothing to do with
        before = _mebibytes("Private_")
        walk()
        os.write(writing, str(_mebibytes("Private_") - before).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        added = file.read()
    os.waitpid(child, 0)
    return float(added)


def _mebibytes(sort: str) -> float:
    """Return this process's memory of a sort: Rss all that it has, Private_ what no other shares."""
    lines = MEMORY.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(sort)) / 1024


def _own_start(config: RunConfig, cache: str) -> tuple[Walk, int]:
    os.environ["XDG_CACHE_HOME"] = cache
    check_data(config)
    sources = [one for one in list_images(config) if isinstance(one, data.IndexedImages)]

    def walk() -> None:
        for source in sources:
            for index in range(len(source)):
                source.place(index)
                source.label(index)

    return walk, sum(map(len, sources))


def _torchvision_start(root: str) -> tuple[Walk, int]:
    folders = [ImageFolder(os.path.join(root, split)) for split in data.SPLITS]

    def walk() -> None:
        for folder in folders:
            for index in range(len(folder)):
                _path, _label = folder.samples[index]

    return walk, sum(map(len, folders))
