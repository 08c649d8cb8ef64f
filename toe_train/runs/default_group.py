"""What functions that stand alone ask the other processes; what belongs to a run asks its `Processes`."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_all(values: Tensor) -> Tensor:
    """Elementwise mean over the processes of torch's default group, in place; of this one alone where there is none."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
