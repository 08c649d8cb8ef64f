"""What goes wrong in a loader process, told to the main process.

torch would send it as a traceback, or, where a batch cannot be sent at all, not at all: the main process would wait for
that batch without end.
"""

from __future__ import annotations

import os
import resource
import signal
from multiprocessing import queues
from multiprocessing.process import BaseProcess
from traceback import print_exception, walk_tb
from typing import Any, NamedTuple

from toe_train.errors import Reported, RunFailed, UserError, of_system

SHARED = "/dev/shm"
PLENTY = 64 * 2**20  # bytes; with more left, and half of the whole, it is not what a batch wanted
SHARING = ("torch/storage.py", "torch/multiprocessing/", "multiprocessing/reduction.py", "multiprocessing/context.py")
LOST_FOR_SPACE, LOST_FOR_FILES, LOST = 101, 102, 103  # exit codes of a loader process that could not send a batch
SECONDS_TO_END = 1.0  # that a worker may take from the loss of its sockets to its end
FILES, FILES_OF_A_WORKER = 40, 26  # open files of a run, and for each worker's pipes and batches on their way


class WorkerGone(RunFailed):
    """A loader process has ended before its time, mostly killed for want of memory."""


class Fault(NamedTuple):
    """What a loader process sends in a batch's place."""

    kind: type[Reported]
    message: str
    then: str

    def error(self) -> Reported:
        """The exception, for the main process."""
        return self.kind(self.message, then=self.then)


def fault_of(error: Exception) -> Fault | None:
    """Return what is to be told of an exception in a loader process; None for a fault of our own, a traceback."""
    if isinstance(error, (OSError, MemoryError)):
        told: Reported = of_system(error)
    elif isinstance(error, (UserError, RunFailed)):
        told = error
    elif code := _cannot_share(error):
        told = _lost_batch(code)
    else:
        return None
    return Fault(type(told), str(told), told.then)


def begin(worker: int) -> None:
    """Set up a loader process: signals are the main one's affair, and a batch that cannot be sent ends it.

    A scheduler and Ctrl-C signal every process; the main one still needs its workers while it saves its place.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # What Python's queue calls where its thread cannot send; by default it prints, and the batch is lost.
    queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def gone(lost: list[BaseProcess]) -> WorkerGone:
    """Return what is told of loader processes that have ended, by how they did."""
    endings = [_ending(worker) for worker in lost]
    codes = {worker.exitcode for worker in lost}
    for code in (LOST_FOR_SPACE, LOST_FOR_FILES):
        if code in codes or (code == LOST_FOR_SPACE and -signal.SIGBUS in codes):
            told = _lost_batch(code)
            return WorkerGone(str(told), then=told.then)
    return WorkerGone(
        f"a loader process is gone ({', '.join(endings)}); too little memory is a frequent cause",
        then="with fewer data.workers {command} continues",
    )


def require_open_files(workers: int) -> None:
    """Raise the process's limit of open files as far as it may be, for it and its workers.

    Raises:
        RunFailed: it stays too low for so many `workers`; without the files a run would wait for a batch without end.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_OF_A_WORKER * workers
    if workers and most != resource.RLIM_INFINITY and most < needed:
        fitting = max(0, (most - FILES) // FILES_OF_A_WORKER)
        raise RunFailed(
            f"data.workers = {workers} takes up to {needed} open files, and this process may have {most} (`ulimit -n`)",
            then=f"with a higher limit, or data.workers={fitting}, {{command}} goes on",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cannot_share(error: Exception) -> int:
    """LOST_FOR_SPACE or LOST_FOR_FILES where torch could not make a batch shared; 0 for another error.

    It raises a RuntimeError of no subclass for both. So it counts by where it was raised, and what is full.
    """
    *_, (frame, _) = [(None, 0), *walk_tb(error.__traceback__)]
    by_torch = type(error) is RuntimeError and frame is not None
    if not (by_torch and any(place in frame.f_code.co_filename for place in SHARING)):
        return 0
    space = _space()
    return LOST_FOR_SPACE if space is not None and space[1] < max(PLENTY, space[0] / 2) else LOST_FOR_FILES


def _space() -> tuple[int, int] | None:
    """Bytes of shared memory, and those that are free; None where there is no such file system."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _lost_batch(code: int) -> RunFailed:
    if code == LOST_FOR_FILES:
        return RunFailed(
            f"a loader process could not send a batch: too many open files, of {_open_files()} (`ulimit -n`)",
            then="with a higher limit or fewer data.workers {command} continues",
        )
    space = _space()
    size = f" ({space[0] / 2**20:.1f} MiB)" if space else ""
    return RunFailed(
        f"{SHARED}{size} is full: loader processes hand their batches over through it",
        then="with more of it (docker run --shm-size=8g), fewer data.workers, or data.workers=0, {command} continues",
    )


def _open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _end(error: Exception, batch: Any) -> None:
    """Ends this process, whose exit code says why."""
    system = isinstance(error, OSError) and error.errno is not None
    code = _cannot_share(error) or (LOST_FOR_FILES if system else LOST)
    if code == LOST:
        print_exception(error)
    os._exit(code)


def _ending(worker: BaseProcess) -> str:
    worker.join(SECONDS_TO_END)  # its sentinel says that it has ended: this fetches how
    code = worker.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"process {worker.pid}: {how}"
