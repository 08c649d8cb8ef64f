"""Bytes within a file: an image in an archive, read by its position."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from toe_train.errors import UserError

KEPT_OPEN = 128  # archives, of each process


class Span(NamedTuple):
    """`length` bytes of the file `archive` from `offset` on, which a person knows as `name`; `held`: they are these."""

    archive: str
    offset: int
    length: int
    name: str
    held: bytes | None = None

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Return the bytes.

        Raises OSError where the archive cannot be opened, UserError where it ends before the last of them.
        """
        if self.held is not None:
            return self.held
        return read_at(_opened(self.archive).descriptor, self.offset, self.length, self.archive)


class _Opened:
    """A file that is open as long as something holds this, which another thread may."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


_opened = lru_cache(KEPT_OPEN)(_Opened)


def forget_opened() -> None:
    """Close the archives that this process has open: another file may have come in the place of one."""
    _opened.cache_clear()


def read_at(descriptor: int, offset: int, length: int, name: str) -> bytes:
    """Return bytes of an open file, wherever another process that shares it stands; UserError where it ends before."""
    content = os.pread(descriptor, length, offset)
    while len(content) < length:  # the kernel gives 2 GiB at most at once
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            raise UserError(
                f"{name} ends at byte {offset + len(content)}, and bytes up to {offset + length} belong to it: it is "
                "truncated; copy or download it again"
            )
        content += more
    return content
