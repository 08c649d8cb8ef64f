"""Several processes on this machine, started and watched by torch.distributed.run."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser
from torch.distributed.run import main as torchrun

from toe_train.errors import Preempted, UserError

SHUTDOWN_SECONDS = 120  # that the processes have to save their place before torchrun kills them


def under_torchrun() -> bool:
    """Whether this process was started by torchrun, which then says who it is in the environment."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarted() -> bool:
    """Whether torchrun or Slurm started the same command again by itself."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


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


def launch(count: int, arguments: Sequence[str], module: str = "toe_train") -> int:
    """Runs `python -m MODULE ARGUMENTS` in `count` processes; the first failing one's exit code."""
    # torchrun passes SIGTERM on to the processes, and would die of SIGUSR1.
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    options = ["--standalone", f"--nproc-per-node={count}"]
    if "--shutdown-timeout" in get_args_parser().format_help():  # torch 2.6 has not
        options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    try:
        torchrun([*options, "-m", module, *arguments])
    except SignalException as error:
        if error.sigval == signal.SIGTERM:
            raise Preempted(
                "by a signal, which was passed on; the same command continues from the last checkpoint"
            ) from None
        raise
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    return 0
