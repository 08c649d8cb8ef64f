"""What started this command, and whether it started it again by itself."""

from __future__ import annotations

import os
from pathlib import Path


def jobs() -> dict[str, str]:
    """What stays the same when torchrun or Slurm starts a command again by itself, and only then; of each at hand."""
    found = {"slurm": os.environ.get("SLURM_JOB_ID"), "torchrun": os.environ.get("TORCHELASTIC_RUN_ID")}
    if found["torchrun"] == "none":  # its run has no name: then the process itself, on one machine
        agent = os.getppid()
        try:
            began = Path(f"/proc/{agent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        except OSError:  # not Linux
            began = "?"
        found["torchrun"] = f"{agent}, started at {began}"
    return {name: value for name, value in found.items() if value}


def restarted_jobs() -> dict[str, str]:
    """Those of `jobs` that started this command again by themselves."""
    counts = {"slurm": "SLURM_RESTART_COUNT", "torchrun": "TORCHELASTIC_RESTART_COUNT"}
    return {name: value for name, value in jobs().items() if os.environ.get(counts[name], "") not in ("", "0")}
