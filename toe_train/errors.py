"""The exceptions that the command line shows without a traceback. Anything else that is raised is our own fault."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class Reported(Exception):
    """Base of them all; `str` of one is its message alone.

    Attributes:
        then: a clause on how to go on, which names the command as `{command}`: "{command} continues". Empty for none.
        shared: whether every process of the run raises it, so that one telling is enough.
        told_elsewhere: whether another process has told what was the cause.
    """

    shared = False
    told_elsewhere = False

    def __init__(self, message: str, *, then: str = "") -> None:
        super().__init__(message)
        self.then = then

    def told(self, command: str) -> str:
        """The message, and after a semicolon how to go on with `command`."""
        return f"{self}; {self.then.replace('{command}', command)}" if self.then else str(self)


class UserError(Reported, ValueError):
    """Something the user can put right: the message gives the value, the rule and the remedy. Exit code 2."""


class RunFailed(Reported, RuntimeError):
    """A run that cannot go on (a loss that is not finite, say): the message tells what is left on disk. Exit code 3."""


class NoMemory(RunFailed):
    """The memory does not hold an image or its labels; a run that passes over unreadable ones passes over it."""

    def __init__(self, message: str, *, then: str = "give the process more, or make the file smaller") -> None:
        super().__init__(message, then=then)


class Interrupted(RunFailed):
    """A run that the same command takes up again: another process is gone, or it needs less memory. Exit code 4."""


class ProcessGone(Interrupted):
    """Another process of the run is gone."""


class Preempted(Reported, RuntimeError):
    """A run that a signal asked to stop and that saved its place. Exit code 75, for a scheduler to start it again."""


def is_text(name: str) -> bool:
    """Whether a name is text, which can be written to a file; Python holds other bytes of a name as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


@contextmanager
def host_memory() -> Iterator[None]:
    """For the block, MemoryError too where torch does not get the machine's memory, for which it has no type.

    It raises RuntimeError, as for any fault of a call, and the name of its allocator is all that tells this one.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error) is RuntimeError and CPU_ALLOCATOR in str(error):
            raise MemoryError(str(error).partition(f"{CPU_ALLOCATOR}: ")[2]) from None
        raise


CPU_ALLOCATOR = "DefaultCPUAllocator"  # c10/core/impl/alloc_cpu.cpp of torch 2.6 to 2.15
LACKS = {  # what the machine has too little of, by errno, and the remedy
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), or take fewer data.workers",
    errno.ENFILE: "close other programs, or raise the machine's limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`, a container's --pids-limit), or take fewer data.workers",
    errno.ENOMEM: "give the process more memory, or take fewer data.workers or smaller train.max_micro_batch",
}


def of_system(error: OSError | MemoryError) -> UserError | RunFailed:
    """What a fault of the system means: another path is to be named, or room, rights, memory or handles to be given."""
    if isinstance(error, MemoryError):
        said = str(error).strip().splitlines()  # torch puts a loader process's traceback before
        detail = f" ({said[-1]})" if said else ""
        return RunFailed(
            f"the machine's memory is full{detail}", then=f"{LACKS[errno.ENOMEM]}; then {{command}} continues"
        )
    wrong_path = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, wrong_path) and error.filename is not None:
        return UserError(f"{error.strerror}: {error.filename}; name another path, or put this one right")
    reason = (str(error).strip() or repr(error)).splitlines()[-1]
    remedy = LACKS.get(error.errno or 0, "make room, or give the right to it")
    return RunFailed(reason, then=f"{remedy}, then {{command}} continues")
