"""Exit codes of the commands, and the one place where an error becomes a message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException

from toe_train.cli.console import INTERRUPTED
from toe_train.errors import Interrupted, Preempted, Reported, RunFailed, UserError, host_memory, of_system

USER_ERROR = 2
RUN_FAILED = 3  # it cannot go on
START_AGAIN = 4  # the same command goes on
PREEMPTED = 75  # EX_TEMPFAIL
ENDS = (USER_ERROR, RUN_FAILED, PREEMPTED)  # after which a run is not started again by itself


def guarded(command: Callable[[], int], again: Callable[[], str] = lambda: "the same command") -> int:
    """Runs `command`; what the user caused ends as a message on stderr and an exit code, without a traceback.

    Args:
        command: what to do; its exit code is returned.
        again: names the command that goes on from here.
    """
    try:
        with host_memory():
            return command()
    except UserError as error:
        return _report("error", error, USER_ERROR, again())
    except RunFailed as error:
        code = START_AGAIN if isinstance(error, Interrupted) else RUN_FAILED
        return _report("run failed", error, code, again())
    except Preempted as error:
        if "RANK" in os.environ:  # when the first process is gone, torchrun ends the others, which are on their way
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _report("stopped", error, PREEMPTED, again())
    except torch.OutOfMemoryError as error:
        return _report("run failed", RunFailed(f"out of device memory: {error}"), RUN_FAILED, again())
    except (OSError, MemoryError) as error:  # a log on a full disk, for one; what is known of beforehand is a UserError
        return guarded(partial(_raise, of_system(error)), again)
    except (KeyboardInterrupt, SignalException):
        interrupted = Reported("from outside", then="{command} continues from the last checkpoint, if there is one")
        interrupted.shared = True
        return _report("interrupted", interrupted, INTERRUPTED, again())


def _raise(error: Exception) -> NoReturn:
    raise error


def _report(what: str, fault: Reported, code: int, again: str) -> int:
    is_main = int(os.environ.get("RANK", 0)) == 0
    if not fault.told_elsewhere and (is_main or not fault.shared):
        print(f"{what}: {fault.told(again)}", file=sys.stderr, flush=True)
    return code
