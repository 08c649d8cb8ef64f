"""Processes: one code path from one up. Nothing outside this file asks how many there are before it communicates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from traceback import walk_tb
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toe_train.errors import ProcessGone, Reported, RunFailed, UserError, host_memory, of_system
from toe_train.runs import parcel
from toe_train.runs.joining import backend_of, join, own_device, require_interfaces

Result = TypeVar("Result")

# How long a process waits for the others. One that dies is noticed at once, by its closed sockets or by torchrun; this
# ends a run in which one hangs. It is longer than any may be at work alone: before the first step the main one lists
# the images, on a slow disk for long, and each compiles; after it checkpoints are written and read, in minutes.
PATIENCE = timedelta(hours=2)
PATIENCE_IN_STEPS = timedelta(minutes=15)
TOLD = "toe_train/told"  # key in the processes' store, set by one that ends and says why
COMMUNICATING = ("torch/distributed/", "torch/nn/parallel/distributed.py", "torch/autograd/")


@contextmanager
def communicating(backend: str) -> Iterator[None]:
    """Around what the processes do together over `backend`: where another process is gone, raises ProcessGone.

    NCCL says so by a DistError, gloo by a RuntimeError of no subclass; that one counts where torch's collectives, DDP
    or autograd, whose backward pass communicates, raised it. A model's own fault comes from another place. Memory that
    the machine does not give is a MemoryError, wherever it was asked for.
    """
    try:
        with host_memory():
            yield
    except RuntimeError as error:
        by_gloo = backend == "gloo" and type(error) is RuntimeError and _comes_from_communication(error)
        if isinstance(error, dist.DistError) or by_gloo:
            raise _lost(error) from error
        raise


def _comes_from_communication(error: RuntimeError) -> bool:
    """Whether the innermost line of Python is one from which torch communicates."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return any(place in frame.f_code.co_filename for place in COMMUNICATING)


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

    def wrap(self, model: nn.Module, sides: tuple[int, int]) -> nn.Module:
        """The model with gradients averaged over the processes in the backward pass.

        After its first backward pass DDP arranges the gradients anew, and sums in another order from then on. Here that
        pass is one that changes nothing, so that a resumed run's first step is summed as the uninterrupted run's was.
        From then on the others are waited for in minutes.
        """
        if self.world_size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with communicating(backend_of(self.device)):
            # Buffers are synced in each forward pass, the default (`forward_sync_buffers`): LV-ViT's batch norm in the
            # stem relies on it, whose statistics are the main process's.
            wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
            model.eval()
            with torch.compiler.set_stance("force_eager"):
                output = wrapped(torch.zeros(2, 3, *sides, device=self.device))
                outputs = output if isinstance(output, (tuple, list)) else (output,)
                sum((part.sum() for part in outputs), start=torch.zeros((), device=self.device)).backward()
        model.zero_grad(set_to_none=True)
        for group in (dist.group.WORLD, self.control):
            _wait_at_most(PATIENCE_IN_STEPS, group)
        return wrapped

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the main process may be at work on for longer than any step takes, while the others wait."""
        if self.world_size == 1:
            yield
            return
        _wait_at_most(PATIENCE, self.control)
        yield
        _wait_at_most(PATIENCE_IN_STEPS, self.control)  # after a fault the run ends, and no step follows

    @contextmanager
    def averaging(self, model: nn.Module, skip: bool) -> Iterator[None]:
        """Around a micro-batch's forward and backward pass: averages, but not where `skip`, in all of a step but one.

        Where averaging is skipped DDP may still communicate: its forward pass gives the main process's buffers to all.
        """
        if self.world_size == 1:
            yield
            return
        holding_back = model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()
        with communicating(backend_of(self.device)), holding_back:
            yield

    def share_buffers(self, model: nn.Module) -> None:
        """Gives the main process's buffers to all: what batch norm learned differs by process until then."""
        if self.world_size > 1:
            with communicating(backend_of(self.device)):
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, in place."""
        if self.world_size > 1:
            with communicating(backend_of(self.device)):
                dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """The largest `value` of all processes."""
        return self.largest([value])[0]

    def largest(self, values: list[float]) -> list[float]:
        """The largest of each of `values` over all processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        with communicating("gloo"):
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return [float(value) for value in tensor]

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank; small and picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with communicating("gloo"):
            dist.all_gather_object(values, value, group=self.control)
        return values

    def together(self, work: Callable[[], Result]) -> Result:
        """Does `work` in every process; a fault in one of them is raised in all, so that none waits for it in vain.

        `work` itself must not communicate.
        """
        result: Result | None = None
        fault: UserError | RunFailed | None = None
        try:
            result = work()
        except (UserError, RunFailed) as error:
            fault = error
        except (OSError, MemoryError) as error:
            fault = of_system(error)
        first = next((found for found in self.gather(fault) if found is not None), None)
        if first is not None:
            first.shared = True
            raise first
        return result  # type: ignore[return-value]  # without a fault it is work's

    def main_only(self, work: Callable[[], object]) -> None:
        """Does `work` in the main process while the others wait; its fault is raised in all."""
        self.together(lambda: work() if self.is_main else None)

    def from_main(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, which alone does it, in all; its fault is raised in all.

        It may be large: tensors and arrays in it are sent one by one, over the CPUs.
        """
        if self.world_size == 1:
            return work()

        def packed() -> tuple[Result, bytes, list[parcel.Part]]:
            result = work()
            return result, *parcel.pack(result)

        done = self.together(lambda: packed() if self.is_main else None)
        letter: list[Any] = [None if done is None else (done[1], [parcel.kind(part) for part in done[2]])]
        with communicating("gloo"):
            dist.broadcast_object_list(letter, src=0, group=self.control)
        pickled, kinds = letter[0]
        parts = [parcel.empty(kind) for kind in kinds] if done is None else done[2]
        for part in parts:
            content = parcel.as_bytes(part)
            if content.numel():
                with communicating("gloo"):
                    dist.broadcast(content, src=0, group=self.control)
        return parcel.unpack(pickled, parts) if done is None else done[0]


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the process group that torchrun's environment describes, or stays alone; leaves it, but after a fault."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = own_device(int(os.environ.get("LOCAL_RANK", 0)))
    if world_size == 1:
        yield Processes(rank, world_size, device)
        return
    require_interfaces()
    store: dist.Store | None = None
    try:
        with communicating(backend_of(device)):
            store = join(rank, world_size, device, PATIENCE)
        with communicating("gloo"):
            control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup)  # this process is in it
        yield Processes(rank, world_size, device, control)
    except dist.DistError as error:
        raise _heard(_lost(error), store) from error
    except Reported as fault:
        _heard(fault, store)
        raise
    else:  # not after a fault: NCCL's end would wait for processes that wait for this one in an all-reduce
        dist.destroy_process_group()


def _wait_at_most(patience: timedelta, group: dist.ProcessGroup | None) -> None:
    public = getattr(dist.distributed_c10d, "set_timeout", None)  # of late; what it was before is deprecated then
    (public or dist.distributed_c10d._set_pg_timeout)(patience, group)


def _lost(error: RuntimeError) -> ProcessGone:
    reason = (str(error).strip() or repr(error)).splitlines()[-1][:200]
    lost = ProcessGone(
        f"another process of the run is gone ({reason}); what it printed, or torchrun's report, says why",
        then="{command} continues from the last checkpoint",
    )
    lost.shared = True
    return lost


def _heard(fault: Reported, store: dist.Store | None) -> Reported:
    """The fault, as one that another process has told where it has; else the others learn that this one tells it."""
    with suppress(RuntimeError):  # the store may be gone with its process
        if store is not None:
            store.set_timeout(timedelta(seconds=5))
            if isinstance(fault, ProcessGone):
                fault.told_elsewhere = store.check([TOLD])
            elif not fault.shared:
                store.set(TOLD, "1")
    return fault
