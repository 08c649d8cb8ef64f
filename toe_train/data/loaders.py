"""Data loaders: batches in the order of a sampler, whatever the number of workers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from toe_train.data.augmentation.pixels import collate
from toe_train.data.order.positions import SampleKey
from toe_train.data.sets import EvalSet, TrainSet
from toe_train.data.worker_faults import SECONDS_TO_END, Fault, begin, fault_of, gone
from toe_train.errors import Reported, host_memory


class CleanErrors:
    """A DataLoader that raises a UserError as its data set did, and RunFailed for what the machine lacks.

    That is NoMemory where an image is too large, and WorkerGone where a worker is gone.

    torch would send a worker's exception as "Caught ... in DataLoader worker process 0. Original Traceback ...", which
    is not for a person to read; what is a fault of our own still comes so. Workers end with an error.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self.loader:
                if isinstance(batch, Fault):
                    raise batch.error()
                yield batch
        except Reported:
            self.close()
            raise
        except Exception as fault:
            # The memory of a batch is asked of the worker that made it, by a socket, which goes before the process.
            by_socket = isinstance(fault, (EOFError, ConnectionError, FileNotFoundError))
            lost = self._lost(SECONDS_TO_END if by_socket else 0)
            self.close()
            if not lost:
                raise
            raise gone(lost) from fault

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around what uses the batches: raise WorkerGone for what the end of a worker makes of the block.

        torch raises RuntimeError wherever the main thread is when a worker ends by itself.
        """
        try:
            yield
        except Reported:
            raise
        except RuntimeError as fault:
            if lost := self._lost(0):
                raise gone(lost) from fault
            raise

    def close(self) -> None:
        """Stop the workers; a later pass starts new ones.

        Left to the garbage collector, torch waits 5 seconds for each worker: an error's traceback ties loader and
        queues into a cycle, and the queues are gone before the workers are told to end.
        """
        iterator, self.loader._iterator = self.loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # only persistent iterators, which have it

    def _lost(self, seconds: float) -> list[BaseProcess]:
        """Return the workers that are not alive; where all are, wait for the first to end, so long at most."""
        workers: list[BaseProcess] = getattr(self.loader._iterator, "_workers", [])
        ended = wait([worker.sentinel for worker in workers], seconds) if workers else []
        return [worker for worker in workers if worker.sentinel in ended]


def train_loader(
    train_set: TrainSet,
    batch_sampler: Iterable[list[SampleKey]],
    workers: int,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] = collate,
) -> CleanErrors:
    """Return a loader of (Pixels or Views of b images, labels (b,) int64 or a TokenTarget), by micro-batches.

    Call the sampler's `set_epoch` before each pass. Workers, each with one torch thread, live as long as the loader.
    `collate` makes a batch of the data set's samples. Iterating raises UserError for an unreadable image.
    """
    return CleanErrors(
        DataLoader(
            _Batches(train_set, collate),
            batch_sampler=batch_sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=begin,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each pass would draw a seed for the workers from the global one
        )
    )


def eval_loader(
    eval_set: EvalSet,
    indices: Sequence[int],
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] = default_collate,
    batches: Sequence[list[int]] | None = None,
) -> CleanErrors:
    """Return a loader of (images (b, C, S, S) float32, labels (b,) int64) over `indices`; the last batch may be short.

    `batches` are these indices as they are to be put together, where it is not in their order. Iterating raises
    UserError for an unreadable image.
    """
    return CleanErrors(
        DataLoader(
            _Batches(eval_set, collate),
            batch_sampler=in_order(indices, batch_size) if batches is None else batches,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=begin,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )
    )


def in_order(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches; the last one may be short."""
    return [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]


class _Batches(Dataset[Any]):
    """A data set that gives whole batches, collated, or a `Fault`."""

    def __init__(self, samples: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self._samples = samples
        self._collate = collate

    def __getitems__(self, keys: list[Any]) -> Any:
        try:
            return self._batch(keys)
        except Exception as error:
            if fault := fault_of(error):
                return fault
            raise

    def _batch(self, keys: list[Any]) -> Any:
        with host_memory():
            if hasattr(self._samples, "__getitems__"):  # which reads an image once for all its places in the batch
                return self._collate(self._samples.__getitems__(keys))
            return self._collate([self._samples[key] for key in keys])


def _as_it_is(batch: Any) -> Any:
    return batch
