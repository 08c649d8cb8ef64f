"""What started this command, and whether it started it again by itself."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

TORCHRUN = re.compile(rb"torchrun|torch[./]distributed[./]run")  # in its command line


def jobs() -> dict[str, str]:
    """What stays the same when torchrun or Slurm starts a command again by itself, and only then; of each at hand."""
    found = {"slurm": os.environ.get("SLURM_JOB_ID"), "torchrun": os.environ.get("TORCHELASTIC_RUN_ID")}
    if found["torchrun"] == "none":  # its run has no name: then the process itself, on one machine
        agent = _torchrun() or os.getppid()
        began = _ticks(agent)
        found["torchrun"] = f"{agent}, started at {'?' if began is None else began}"
    return {name: value for name, value in found.items() if value}


def restarted_jobs() -> dict[str, tuple[str, float]]:
    """Those of `jobs` that started this command again by themselves, each with when it began (`time.time`).

    Slurm gives a number once: 0. The name that a user gives torchrun may have been an older run's too, and only what
    was written since torchrun began is this one's.
    """
    counts = {"slurm": "SLURM_RESTART_COUNT", "torchrun": "TORCHELASTIC_RESTART_COUNT"}
    began = {"slurm": 0.0, "torchrun": _torchrun_began()}
    return {
        name: (value, began[name])
        for name, value in jobs().items()
        if os.environ.get(counts[name], "") not in ("", "0")
    }


def _torchrun_began() -> float:
    """When torchrun began, by `time.time`; 0 where that is not to be known."""
    agent = _torchrun()
    ticks = None if agent is None else _ticks(agent)
    if ticks is None:
        return 0.0
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _torchrun() -> int | None:
    """The process from which this one stems and that is torchrun; a profiler or a shell may stand between."""
    process = os.getppid()
    while process > 1:
        try:
            if TORCHRUN.search(Path(f"/proc/{process}/cmdline").read_bytes()):
                return process
            process = int(_stat(process)[1])
        except OSError:  # not Linux, or another user's
            return None
    return None


def _ticks(process: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None where there is no /proc."""
    try:
        return int(_stat(process)[19])
    except OSError:  # not Linux
        return None


def _stat(process: int) -> list[str]:
    """The fields of /proc/PROCESS/stat behind the name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
