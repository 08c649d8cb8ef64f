"""How many threads a process computes with, and how they wait for each other.

Imported before torch, whose threads read `GOMP_SPINCOUNT` when its library is loaded. It imports no torch itself.
"""

from __future__ import annotations

import os

from toe_train.cores import usable_cores

SPINS = 30_000  # of a waiting thread of GNU OpenMP before it sleeps
BUSY = 0.75  # share of the cores


def wait_briefly() -> None:
    """Lets threads that wait for each other spin for a fraction of a millisecond and then sleep.

    On a core that another program takes too, a thread that spins keeps its fellow from the work it waits for. Measured
    with a small ViT on two cores, medians of three, in images/s: GNU's default (300,000) 530 on an idle machine and 139
    beside a spinning program on each core; with this 597 and 262; without spinning (OMP_WAIT_POLICY=passive) about half
    of the idle speed. Unless the environment says otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def take_threads() -> None:
    """Computes with as many threads as there are cores to use; `OMP_NUM_THREADS`, which torchrun sets, goes before."""
    import torch  # not at the top, see above

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def tell_if_busy() -> None:
    """Says where other programs use the cores that the main process would compute with."""
    import torch

    note = is_busy(os.cpu_count() or 1, os.getloadavg()[0])
    if note and not torch.cuda.is_available() and os.environ.get("RANK", "0") == "0":
        print(note)


def is_busy(cores: int, load: float) -> str:
    """A note where other programs take the cores; empty where they do not.

    Args:
        cores: of the whole machine, as the load is.
        load: programs that wanted to run, the mean of the last minute (`os.getloadavg`).
    """
    if load < BUSY * cores:
        return ""
    return (
        f"note: other programs take this machine's cores (load {load:.1f} of {cores}): what is begun takes longer, and "
        "its times and speeds say little"
    )
