"""Several processes on this machine, started and watched by torch.distributed.run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser
from torch.distributed.run import main as torchrun

from toe_train.cli.exits import ENDS, START_AGAIN
from toe_train.cores import usable_cores
from toe_train.errors import Preempted, UserError

RESTARTS = 3  # after which a run that crashes again and again ends
SHUTDOWN_SECONDS = 120  # that the processes have to save their place before torchrun kills them


def under_torchrun() -> bool:
    """Whether this process was started by torchrun, which then says who it is in the environment."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def process_count(nproc: str) -> int:
    """Processes to run on this machine: a number, or `auto` for one per visible GPU and one on a CPU.

    Raises:
        UserError: not a number, or more than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if nproc == "auto":
        return max(1, gpus)
    if not nproc.isdecimal() or int(nproc) < 1:
        raise UserError(f"--nproc {nproc} must be auto or a whole number from 1 up")
    if gpus and int(nproc) > gpus:
        raise UserError(f"--nproc {nproc}: only {gpus} GPUs are visible; use --nproc {gpus} or auto")
    return int(nproc)


def launch(
    count: int,
    arguments: Sequence[str],
    module: str = "toe_train",
    again: Callable[[set[int]], Sequence[str] | None] | None = None,
) -> int:
    """Runs `python -m MODULE ARGUMENTS` in `count` processes; the exit code of the first that fails.

    It is START_AGAIN where a signal killed that one. A code of ENDS counts whichever process ends with it: another one,
    which waits for it in vain, may fail first.

    Not with torchrun's --max-restarts, which starts again what the user has to mend, and what a signal has stopped.

    Args:
        count: of processes.
        arguments: of each.
        module: that runs.
        again: for the exit codes of those that failed (minus a signal's number where it killed one), the arguments with
            which all are started again, at most RESTARTS times, or None to leave it.

    Raises:
        Preempted: this process was asked to stop; so were the others.
    """
    # torchrun passes SIGTERM and Ctrl-C on to the processes, once they run, and would die of SIGUSR1.
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    options = ["--standalone", f"--nproc-per-node={count}"]
    known = get_args_parser().format_help()  # torch 2.6 has neither of the two
    if "--shutdown-timeout" in known:
        options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    if "--signals-to-handle" in known:
        options.append("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT")  # a terminal that is closed, SIGHUP, ends nothing
    restarts = 0
    while True:
        try:
            torchrun([*options, "-m", module, *arguments])
            return 0
        except SignalException as error:
            if error.sigval in (signal.SIGTERM, signal.SIGINT):
                raise Preempted(
                    "by a signal, which was passed on", then="{command} continues from the last checkpoint"
                ) from None
            raise
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            further = again(codes) if again is not None and restarts < RESTARTS else None
            if further is None:
                if restarts == RESTARTS:
                    print(f"started again {RESTARTS} times, and ended each time; the same command goes on", flush=True)
                code = error.get_first_failure()[1].exitcode
                return next((end for end in ENDS if end in codes), code if code > 0 else START_AGAIN)
        restarts, arguments = restarts + 1, further
        print(f"all processes are started again ({restarts} of at most {RESTARTS} times)", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SignalException("asked to stop before the processes ran", signal.Signals(number))
