"""One process's objects for all of them: small parts pickled, tensors and arrays sent as they are."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def handed_over(made: Any, is_main: bool, group: dist.ProcessGroup | None) -> Any:
    """What the main process made, in every process; all call it together.

    Tensors and numpy arrays are broadcast one by one, so that no process holds a second copy of all of them.

    Args:
        made: of the main process; the others' is not looked at.
        is_main: whether this is that process.
        group: over the CPUs.
    """
    parcel: list[Any] = [None, None]
    large: list[Tensor] = []
    if is_main:
        stream = io.BytesIO()
        packer = _Packer(stream)
        packer.dump(made)
        large = packer.large
        parcel = [stream.getvalue(), [(tensor.dtype, tuple(tensor.shape)) for tensor in large]]
    dist.broadcast_object_list(parcel, src=0, group=group)
    if not is_main:
        large = [torch.empty(shape, dtype=dtype) for dtype, shape in parcel[1]]
    for tensor in large:
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=group)
    return made if is_main else _Unpacker(io.BytesIO(parcel[0]), large).load()


class _Packer(pickle.Pickler):
    """Leaves tensors and arrays out and remembers them."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.large: list[Tensor] = []

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        kind = "tensor" if type(value) is Tensor else "array" if _is_plain_array(value) else None
        if kind is None:
            return None
        tensor = value if kind == "tensor" else torch.from_numpy(np.ascontiguousarray(value))
        self.large.append(tensor.detach().cpu().contiguous())
        return kind, len(self.large) - 1


class _Unpacker(pickle.Unpickler):
    """Puts them in again."""

    def __init__(self, stream: io.BytesIO, large: list[Tensor]) -> None:
        super().__init__(stream)
        self.large = large

    def persistent_load(self, place: tuple[str, int]) -> Any:
        kind, number = place
        return self.large[number] if kind == "tensor" else self.large[number].numpy()


def _is_plain_array(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype in (np.uint8, np.int32, np.int64, np.float32) and value.ndim > 0
