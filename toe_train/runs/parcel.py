"""A value taken apart for sending: a small pickle, and its tensors and large arrays, each on its own.

In one pickle they would lie in memory several times over.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

Part = Tensor | numpy.ndarray[Any, Any]
Kind = tuple[Any, tuple[int, ...]]  # dtype of torch or of numpy, and shape

SMALL_ARRAY = 4096  # bytes, up to which an array stays in the pickle


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[Part] = []
        self._numbers: dict[int, int] = {}  # of the parts by id; what stands in several places is one part

    def persistent_id(self, value: Any) -> int | None:
        if not _is_part(value):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.parts)
            self.parts.append(value.cpu() if isinstance(value, Tensor) else value)
        return self._numbers[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: Sequence[Part]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, number: Any) -> Part:
        return self._parts[number]


def pack(value: Any) -> tuple[bytes, list[Part]]:
    """The pickle of `value` without its parts, and the parts, on the CPU."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.parts


def unpack(pickled: bytes, parts: Sequence[Part]) -> Any:
    """What `pack` was given; tensors and arrays are contiguous."""
    return _Unpacker(io.BytesIO(pickled), parts).load()


def kind(part: Part) -> Kind:
    """What `empty` needs to know of a part."""
    return part.dtype, tuple(part.shape)


def empty(of: Kind) -> Part:
    """Room for a part."""
    dtype, shape = of
    return torch.empty(shape, dtype=dtype) if isinstance(dtype, torch.dtype) else numpy.empty(shape, dtype)


def as_bytes(part: Part) -> Tensor:
    """The part's content, (bytes,) uint8; of an `empty` one, the memory to write it to."""
    if isinstance(part, Tensor):
        return part.contiguous().flatten().view(torch.uint8)
    writable = numpy.require(part, requirements=("C", "W"))  # torch warns of others
    return torch.from_numpy(writable.reshape(-1).view(numpy.uint8))


def _is_part(value: Any) -> bool:
    """Not of a subclass, whose type would be lost: a parameter is pickled around its tensor."""
    if type(value) is Tensor:
        plain = value.layout is torch.strided and not (value.is_quantized or value.is_conj() or value.is_neg())
        return plain and not value.is_meta and not value.requires_grad
    return type(value) is numpy.ndarray and value.nbytes > SMALL_ARRAY and not value.dtype.hasobject
