"""Data loaders: batches in the order of a sampler, whatever the number of workers."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader

from toe_train.data.augmentation.pixels import collate
from toe_train.data.order.positions import SampleKey
from toe_train.data.sets import EvalSet, TrainSet
from toe_train.errors import RunFailed, UserError

PATIENCE = 5.0  # seconds that a worker may take to end


class WorkerGone(RunFailed):
    """A loader process ended before its time."""


class CleanErrors:
    """A DataLoader whose workers' UserErrors keep their message only, and whose workers end with an error.

    torch sends a worker's exception as "Caught ... in DataLoader worker process 0. Original Traceback ...", which is
    not for a person to read.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.loader
            return
        except Exception as fault:
            # A batch's memory is asked of the worker that made it, by a socket, which closes before the worker ends.
            of_a_socket = isinstance(fault, (EOFError, ConnectionError, FileNotFoundError))
            self.require_workers(PATIENCE if of_a_socket else 0.0)
            self.close()
            if not isinstance(fault, UserError):
                raise
            marker = f"{UserError.__module__}.{UserError.__qualname__}: "
            _, _, message = str(fault).rpartition(marker)  # the whole text where it holds no traceback
        raise UserError(message.strip())

    def require_workers(self, seconds: float = 0.0) -> None:
        """Raise WorkerGone where a worker of the pass in progress is not alive any more, or ends within `seconds`.

        torch tells of that by a RuntimeError at whatever line the main process is.
        """
        workers: list[Any] = getattr(self.loader._iterator, "_workers", [])
        wait([worker.sentinel for worker in workers], seconds)
        if gone := [worker.pid for worker in workers if not worker.is_alive()]:
            self.close()
            raise WorkerGone(
                f"loader process {gone[0]} is gone, and its batches; too little memory is a frequent cause",
                then="with fewer data.workers {command} continues",
            )

    def close(self) -> None:
        """Stop the workers; a later pass starts new ones.

        Left to the garbage collector, torch waits 5 seconds for each worker: an error's traceback ties loader and
        queues into a cycle, and the queues are gone before the workers are told to end.
        """
        iterator, self.loader._iterator = self.loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # only persistent iterators, which have it


def train_loader(
    train_set: TrainSet,
    batch_sampler: Iterable[list[SampleKey]],
    workers: int,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] = collate,
) -> CleanErrors:
    """Return a loader of (Pixels or Views of b images, labels (b,) int64 or a TokenTarget), by micro-batches.

    Call the sampler's `set_epoch` before each pass. Workers, each with one torch thread, live as long as the loader.
    Iterating raises UserError for an unreadable image.
    """
    return CleanErrors(
        DataLoader(
            train_set,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_main_process,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else each pass would draw a seed for the workers from the global one
        )
    )


def eval_loader(
    eval_set: EvalSet, indices: Sequence[int], batch_size: int, workers: int, pin_memory: bool = False
) -> CleanErrors:
    """Return a loader of (images (b, C, S, S) float32, labels (b,) int64) over `indices`; the last batch may be short.

    Iterating raises UserError for an unreadable image.
    """
    return CleanErrors(
        DataLoader(
            eval_set,
            batch_size=batch_size,
            sampler=indices,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_main_process,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A scheduler signals every process of a job; the main one still needs its workers while it saves its place."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
