"""Files that are whole or absent, and that know when they were damaged.

A sealed file is what `torch.save` writes followed by a seal: a mark, the length of the content and its SHA-256. The
seal stands behind the zip archive, so `torch.load` opens the file as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

MARK = b"toe-train seal 1"
SEAL = struct.Struct(f"<{len(MARK)}sQ32s")  # mark, bytes of content, SHA-256 of the content


class Damaged(Exception):
    """A file is not what was written: the message says how."""


class _SummingFile:
    """A file being written whose content is summed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sum = hashlib.sha256()
        self.length = 0
        self.fault: OSError | None = None  # of the disk

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self.sum.update(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        """Ends the content."""
        self.file.write(SEAL.pack(MARK, self.length, self.sum.digest()))


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a sealed file of tensors and plain values; see `written`."""
    with written(path, state):
        pass


@contextmanager
def written(path: Path, state: dict[str, Any]) -> Iterator[Path]:
    """Writes a sealed file under a temporary name, which the block gets, and gives it its own name after the block.

    It is on the disk before the block begins. Whenever the process dies, `path` is the former file or the new one.

    Raises:
        OSError: no space, no permission, ...; `path` is the former file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            summing = _SummingFile(file)
            try:
                torch.save(state, summing)  # type: ignore[arg-type]  # it writes from front to back, and no more
            except RuntimeError:  # torch's, as it closes its archive, in place of the disk's own fault
                if summing.fault is not None:
                    raise summing.fault from None
                raise
            summing.seal()
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def replace_by_link(source: Path, target: Path) -> None:
    """Gives `source`'s content a second name, in one step; a copy where the disk has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            if not _is_same(source, temporary):  # NFS, asked twice, may say of its own link that it is there already
                shutil.copyfile(source, temporary)
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(target.parent)


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def has_seal(path: Path) -> bool:
    """Whether a file ends in a seal, of whatever content."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL.size))
        return file.read().startswith(MARK)


def verify(path: Path) -> None:
    """Reads a file through and compares it with its seal.

    Raises:
        Damaged: no seal, another length or sum than it says, or the disk does not give it back.
    """
    try:
        _compare_with_seal(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"the disk does not give it back: {error.strerror or error}") from None


def is_whole(path: Path) -> bool:
    """Whether a file is what was written."""
    try:
        verify(path)
    except Damaged:
        return False
    return True


def _compare_with_seal(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - SEAL.size))
        seal = file.read()
        if len(seal) != SEAL.size or not seal.startswith(MARK):
            raise Damaged(f"it has {size} bytes and no seal at its end: truncated, or not written by toe-train")
        _, length, expected = SEAL.unpack(seal)
        if length != size - SEAL.size:
            raise Damaged(f"it has {size - SEAL.size} bytes of content, and {length} were written")
        file.seek(0)
        found, left = hashlib.sha256(), length
        while left:
            block = file.read(min(left, 1 << 22))
            found.update(block)
            left -= len(block)
    if found.digest() != expected:
        raise Damaged("its content is not what was written: the checksums differ")


def read(path: Path) -> Any:
    """What a sealed file holds, on the CPU; nothing in it is run.

    Raises:
        Damaged: see `verify`, or the content is of kinds that are never loaded.
    """
    verify(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what it does not load; all mean the same here
        raise Damaged(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
