"""A function of each of many files, in all cores that there are to use, where there are enough of them."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from toe_train.cores import usable_cores

WORTH_PROCESSES = 1000  # files

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: list[Item], parallel: bool, progress: bool) -> Iterator[Result]:
    """Yield the function's results in the order of the items; progress: show a bar."""

    def shown(results: Iterable[Result]) -> Iterator[Result]:
        yield from tqdm(results, desc="checking files", unit="file", total=len(items), disable=not progress)

    if not parallel or len(items) < WORTH_PROCESSES:
        yield from shown(map(function, items))
        return
    with multiprocessing.Pool(usable_cores()) as pool:
        yield from shown(pool.imap(function, items, chunksize=32))
