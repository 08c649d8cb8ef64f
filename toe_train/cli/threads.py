"""How many threads a process computes with, and how they wait for each other.

Imported before torch, whose threads read `GOMP_SPINCOUNT` when its library is loaded. It imports no torch itself.
"""

from __future__ import annotations

import os
from pathlib import Path

SPINS = 30_000  # of a waiting thread of GNU OpenMP before it sleeps
BUSY = 0.75  # share of the cores
CGROUP = Path("/sys/fs/cgroup")


def wait_briefly() -> None:
    """Lets threads that wait for each other spin for a fraction of a millisecond and then sleep.

    On a core that another program takes too, a thread that spins keeps its fellow from the work it waits for. Measured
    with a small ViT on two cores, medians of three, in images/s: GNU's default (300,000) 530 on an idle machine and 139
    beside a spinning program on each core; with this 597 and 262; without spinning (OMP_WAIT_POLICY=passive) about half
    of the idle speed. Unless the environment says otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: by its affinity and its container's CPU quota, and not what the host has.

    Args:
        cgroup: where control groups are mounted; both of their versions are read.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def is_busy(cores: int, load: float) -> str:
    """A note where other programs take the cores; empty where they do not.

    Args:
        cores: of the whole machine, as the load is.
        load: programs that wanted to run, the mean of the last minute (`os.getloadavg`).
    """
    if load < BUSY * cores:
        return ""
    return (
        f"note: other programs take this machine's cores (load {load:.1f} of {cores}): the run takes longer, and its "
        "times and speeds say little"
    )


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the container has; None where it is not bounded."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            folder = cgroup / "cpu"
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        found = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return found if found > 0 else None  # -1 is no bound
