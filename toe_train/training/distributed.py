"""Processes: one code path from one up. Nothing outside this file asks how many there are before it communicates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toe_train.errors import RunFailed, UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among its fellows.

    Attributes:
        rank: 0 ... world_size - 1 over all nodes.
        world_size: number of processes.
        device: where this process computes.
        control: group for what the processes agree on, over the CPUs, so that it waits for no device; None alone.
    """

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes in the backward pass."""
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def no_sync(self, model: nn.Module, skip: bool) -> AbstractContextManager[None]:
        """Holds back the averaging where `skip`: in all micro-batches of a step but the last."""
        if skip and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """The largest `value` of all processes."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return float(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank; small and picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def together(self, work: Callable[[], Result]) -> Result:
        """Does `work` in every process; a fault in one of them is raised in all, so that none waits for it in vain.

        `work` itself must not communicate.
        """
        result, fault = None, None
        try:
            result = work()
        except (UserError, RunFailed) as error:
            fault = error
        first = next((found for found in self.gather(fault) if found is not None), None)
        if first is not None:
            first.shared = True
            raise first
        return result  # type: ignore[return-value]  # without a fault it is work's

    def main_only(self, work: Callable[[], object]) -> None:
        """Does `work` in the main process while the others wait; its fault is raised in all."""
        self.together(lambda: work() if self.is_main else None)


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the process group that torchrun's environment describes, or stays alone; leaves it at the end."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device(int(os.environ.get("LOCAL_RANK", 0)))
    if world_size == 1:
        yield Processes(rank, world_size, device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, device_id=device if device.type == "cuda" else None)
    try:
        control = dist.new_group(backend="gloo")
        assert isinstance(control, dist.ProcessGroup)  # this process is in it
        yield Processes(rank, world_size, device, control)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} of this node has no GPU: {count} visible; start at most {count} processes a node, "
            f"or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
