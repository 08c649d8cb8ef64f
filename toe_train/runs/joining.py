"""How a process finds its device and its fellows, as torchrun or Slurm started it."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from toe_train.errors import UserError


def backend_of(device: torch.device) -> str:
    """That of the processes' devices."""
    return "nccl" if device.type == "cuda" else "gloo"


def require_interfaces() -> None:
    """GLOO_SOCKET_IFNAME names the network that the processes talk over; gloo would say that another one is gone.

    Raises:
        UserError: this machine has no such interface.
    """
    given = os.environ.get("GLOO_SOCKET_IFNAME", "")
    known = [name for _, name in socket.if_nameindex()]
    for name in filter(None, given.split(",")):
        if name not in known:
            raise UserError(
                f"GLOO_SOCKET_IFNAME={given}: this machine has no network interface {name}; it has {', '.join(known)}"
            )


def join(rank: int, world_size: int, device: torch.device, patience: timedelta) -> dist.Store:
    """Joins the process group that the environment describes; the store in which its processes meet.

    Args:
        rank, world_size, device: of this process, see `Processes`.
        patience: how long it waits for the others.
    """
    store, _, _ = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one node torchrun's restarts meet at the same store (torch 2.15), which still holds the addresses of the
        # processes before. On several nodes they do not count restarts alike.
        store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(
        backend_of(device),
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=patience,
        device_id=device if device.type == "cuda" else None,
    )
    return store


def own_device(local_rank: int) -> torch.device:
    """The GPU of this process, or the CPU where there is none.

    Raises:
        UserError: more processes on this machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    of_one_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1"
    if count == 1 and not of_one_torchrun:  # whose processes all see the same GPU; Slurm's --gpus-per-task shows each
        local_rank = 0  # task its own, as number 0
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} of this node has no GPU: {count} visible; start at most {count} processes a node, "
            f"or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
