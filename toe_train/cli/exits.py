"""Exit codes of the commands, and the one place where an error becomes a message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException

from toe_train.errors import Preempted, Reported, RunFailed, UserError

USER_ERROR = 2
RUN_FAILED = 3
PREEMPTED = 75  # EX_TEMPFAIL
INTERRUPTED = 130


def guarded(command: Callable[[], int]) -> int:
    """Runs `command`; what the user caused ends as a message on stderr and an exit code, without a traceback."""
    try:
        return command()
    except UserError as error:
        return _report("error", error, USER_ERROR)
    except RunFailed as error:
        return _report("run failed", error, RUN_FAILED)
    except Preempted as error:
        if "RANK" in os.environ:  # when the first process is gone, torchrun ends the others, which are on their way
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _report("stopped", error, PREEMPTED)
    except torch.OutOfMemoryError as error:
        return _report("run failed", f"out of device memory: {error}", RUN_FAILED)
    except OSError as error:  # a log on a full disk, for one; what is known of beforehand is a UserError
        return _report(
            "run failed", f"{error}; make room or give the right, then the same command continues", RUN_FAILED
        )
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = " ".join(str(error).split())
        return _report("run failed", f"{reason} Too little memory is a frequent cause: fewer data.workers", RUN_FAILED)
    except (KeyboardInterrupt, SignalException):
        return _report(
            "interrupted",
            "from outside; the same command continues from the last checkpoint, if there is one",
            INTERRUPTED,
        )


def _report(what: str, fault: object, code: int) -> int:
    is_main = int(os.environ.get("RANK", 0)) == 0
    if is_main or (isinstance(fault, Reported) and not fault.shared):
        print(f"{what}: {fault}", file=sys.stderr, flush=True)
    return code
