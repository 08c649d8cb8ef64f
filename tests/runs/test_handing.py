"""One process's objects reach the others as they are."""

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from toe_train.errors import UserError
from toe_train.runs.processes import Processes

MADE = {
    "plain": [1, 2.5, "text", None, ("a", "tuple")],
    "floats": torch.arange(6, dtype=torch.float32).view(2, 3),
    "halves": torch.arange(4).to(torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 5),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "array": {"bytes": np.frombuffer(b"names", dtype=np.uint8), "numbers": np.arange(5)},
}


def _process(rank, port, told):
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    here = Processes(rank, 2, torch.device("cpu"), dist.new_group(backend="gloo"))

    def never():
        raise UserError("there is no such file")

    got = here.from_main(lambda: MADE if rank == 0 else 1 / 0)
    try:
        here.from_main(never)
        fault = None
    except UserError as error:
        fault = str(error)
    told.put((rank, got, fault))
    here.max(0)  # both are done with the store
    dist.destroy_process_group()


def test_what_rank_0_makes_arrives_everywhere():
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    port = dist.TCPStore("127.0.0.1", 0, 1, is_master=True).port
    context = multiprocessing.spawn(_process, (port, told), nprocs=2, join=False)
    found = {rank: (got, fault) for rank, got, fault in (told.get() for _ in range(2))}
    while not context.join():
        pass
    for rank in (0, 1):
        got, fault = found[rank]
        assert fault == "there is no such file"
        assert got["plain"] == MADE["plain"]
        for name in ("floats", "halves", "flags", "scalar", "empty", "transposed"):
            assert got[name].dtype == MADE[name].dtype
            assert torch.equal(got[name], MADE[name])
        for name, array in MADE["array"].items():
            assert got["array"][name].dtype == array.dtype
            assert (got["array"][name] == array).all()


def test_alone_it_is_the_work_itself():
    assert Processes(0, 1, torch.device("cpu")).from_main(lambda: MADE) is MADE
