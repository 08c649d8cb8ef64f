"""What an archive in tar's format holds, and at which bytes: a walk from header to header that reads nothing else.

Format: POSIX.1-2001 "pax Interchange Format" and the GNU tar manual, "Basic Tar Format". Names stay bytes, as a
folder's are to the system. Every fault is told with the archive and the byte at which it was found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from toe_train.data.sources.names import legible
from toe_train.data.sources.span import read_at
from toe_train.errors import UserError

BLOCK = 512
EMPTY = bytes(BLOCK)
LONGEST_EXTENSION = 2**20  # of a long name or of pax records; a name has 4096 bytes at most
CHUNK = 2**20

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
}


class Kind(Enum):
    """What a member is."""

    FILE = "file"
    FOLDER = "folder"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    DEVICE = "pipe or device"


class Member(NamedTuple):
    """One member: its name without "./" before it, and the place of its content; `target`: of a link."""

    name: bytes
    kind: Kind
    offset: int
    length: int
    target: bytes = b""


_FILES = frozenset(b"\x0007")
_KINDS = {
    ord("1"): Kind.HARD_LINK,
    ord("2"): Kind.SYMBOLIC_LINK,
    ord("3"): Kind.DEVICE,
    ord("4"): Kind.DEVICE,
    ord("5"): Kind.FOLDER,
    ord("6"): Kind.DEVICE,
}
_LONG_NAME, _LONG_TARGET, _RECORDS, _GLOBAL_RECORDS = b"LKxg"
_VOLUME = ord("V")


class TarFile:
    """The part of an open file from `start` to `end` (its length where None), which holds an archive.

    name: of the archive in messages; an archive within another one has the positions of the outer one.
    """

    def __init__(self, descriptor: int, name: str, start: int = 0, end: int | None = None) -> None:
        self._descriptor = descriptor
        self.name = name
        self._start = start
        self._end = os.fstat(descriptor).st_size if end is None else end

    def members(self) -> Iterator[Member]:
        """Yield the members in their order.

        Raises UserError where the archive is compressed, damaged, cut off or holds what cannot be read by position.
        """
        place, following, everywhere = self._start, dict[bytes, bytes](), dict[bytes, bytes]()
        while True:
            header = self._header(place)
            if header == EMPTY:
                self._require_end(place)
                return
            self._require_sum(header, place)
            kind, length = header[156], self._number(header[124:136], place)
            begin = place + BLOCK
            if kind in (_LONG_NAME, _LONG_TARGET):
                self._require_inside(place, begin, length)
                text = self._extension(begin, length, place).split(b"\0", 1)[0]
                following[b"path" if kind == _LONG_NAME else b"linkpath"] = text
            elif kind in (_RECORDS, _GLOBAL_RECORDS):
                self._require_inside(place, begin, length)
                records = self._records(self._extension(begin, length, place), begin)
                (following if kind == _RECORDS else everywhere).update(records)
            else:
                member = self._member(header, place, length, {**everywhere, **following} if everywhere else following)
                following = {}
                if member is not None:
                    yield member
                    length = member.length
                elif kind == _VOLUME:
                    length = 0
            place = begin + -(-length // BLOCK) * BLOCK

    def _member(self, header: bytes, place: int, length: int, records: dict[bytes, bytes]) -> Member | None:
        kind, target = header[156], b""
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0", 1)[0]):
            name = prefix + b"/" + name
        if records:
            name = records.get(b"path", name)
            length = self._decimal(records[b"size"], place) if b"size" in records else length
        if kind == ord("S") or any(key.startswith(b"GNU.sparse") for key in records):
            raise self._fault(
                place, f"{_shown(name)} is stored as a sparse file, which is not read", "without --sparse"
            )
        if kind == ord("M"):
            raise self._fault(place, f"{_shown(name)} continues another volume", "as one archive")
        if kind == _VOLUME:
            return None
        is_folder = kind in _FILES and name.endswith(b"/")  # as tar wrote them before POSIX
        of = Kind.FOLDER if is_folder else _KINDS.get(kind, Kind.FILE)
        if of is not Kind.FILE:
            length = 0
            target = records.get(b"linkpath", header[157:257].split(b"\0", 1)[0])
        self._require_inside(place, place + BLOCK, length, name)
        if kind not in _FILES and kind not in _KINDS:
            of = Kind.DEVICE  # of a vendor's own kind: it has content, and is no image
        return Member(self._plain(name, place), of, place + BLOCK, length, target)

    def _header(self, place: int) -> bytes:
        if place + BLOCK > self._end:
            raise UserError(
                f"{self.name} ends at byte {self._end} without the two empty blocks that end an archive: it is "
                "truncated; copy or download it again"
            )
        return read_at(self._descriptor, place, BLOCK, self.name)

    def _require_sum(self, header: bytes, place: int) -> None:
        try:
            noted = int(header[148:156].strip(b" \0") or b"-1", 8)
        except ValueError:
            noted = -1
        if noted == sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return
        others = header[:148] + header[156:]
        if noted != sum(others) - 256 * sum(byte > 127 for byte in others) + 8 * ord(" "):  # as old tars summed
            self._refuse_others(header, place)
            raise self._damaged(place, "there is no header of a member")

    def _refuse_others(self, header: bytes, place: int) -> None:
        if place != self._start:
            return
        for first, (kind, command) in COMPRESSED.items():
            if header.startswith(first):
                raise UserError(
                    f"{self.name} is compressed ({kind}), and what is compressed cannot be read by position: "
                    f"unpack it once, `{command} {self.name}`"
                )

    def _number(self, field: bytes, place: int) -> int:
        """Return a size: octal digits, or where that is too small for it, base 256 behind a first byte of 0x80."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        try:
            digits = field.split(b"\0", 1)[0].strip()
            if digits and not digits.isdigit():  # int would take a sign too
                raise ValueError
            return int(digits or b"0", 8)
        except ValueError:
            raise self._damaged(place, "the size of a member is no number") from None

    def _decimal(self, text: bytes, place: int) -> int:
        if not text.isdigit():
            raise self._damaged(place, f"the size of a member is {_shown(text)}, and no number")
        return int(text)

    def _extension(self, begin: int, length: int, place: int) -> bytes:
        if length > LONGEST_EXTENSION:
            raise self._damaged(place, f"a name or its like has {length} bytes")
        return read_at(self._descriptor, begin, length, self.name)

    def _records(self, content: bytes, begin: int) -> dict[bytes, bytes]:
        """Return pax records: each is its own length in decimal digits, a space, key=value, and a line's end."""
        found, place = {}, 0
        while place < len(content):
            digits, _, _ = content[place : place + 20].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            key, equals, value = content[place + len(digits) + 1 : place + length - 1].partition(b"=")
            if not equals or place + length > len(content) or content[place + length - 1 : place + length] != b"\n":
                raise self._damaged(begin + place, "there is no pax record")
            found[key] = value
            place += length
        return found

    def _require_inside(self, place: int, begin: int, length: int, name: bytes = b"") -> None:
        if begin + length > self._end:
            what = _shown(name) if name else "what follows"
            raise UserError(
                f"{self.name} ends at byte {self._end}, and {what} (header at byte {place}) would end at byte "
                f"{begin + length}: it is truncated or damaged; copy or download it again"
            )

    def _require_end(self, place: int) -> None:
        """Nothing follows the mark of the end, which a hole, or archives one behind the other, would be taken for."""
        if place + 2 * BLOCK > self._end:
            raise UserError(
                f"{self.name} ends at byte {self._end}, after one of the two empty blocks that end an archive: it is "
                "truncated; copy or download it again"
            )
        while place < self._end:
            content = read_at(self._descriptor, place, min(CHUNK, self._end - place), self.name)
            if rest := content.lstrip(b"\0"):
                raise self._damaged(
                    place + len(content) - len(rest), "there is more behind the mark of the archive's end"
                )
            place += len(content)

    def _plain(self, name: bytes, place: int) -> bytes:
        """Return a name as it lies in the folder that the archive is unpacked in."""
        if name.startswith((b"/", b"./")) or b"//" in name or b"/." in name or name.endswith(b"/") or name == b"..":
            parts = [part for part in name.split(b"/") if part not in (b"", b".")]
            name = b"/".join(parts)
            if b".." in parts:
                raise self._fault(place, f"{_shown(name)} lies outside the archive's folder", "from that folder")
        elif name.startswith(b"../"):
            raise self._fault(place, f"{_shown(name)} lies outside the archive's folder", "from that folder")
        return name

    def _damaged(self, place: int, what: str) -> UserError:
        return UserError(f"{self.name} is damaged: at byte {place} {what}; copy or download it again")

    def _fault(self, place: int, what: str, remedy: str) -> UserError:
        return UserError(f"{self.name}: at byte {place} {what}; make the archive anew, {remedy}")


def _shown(name: bytes) -> str:
    return legible(os.fsdecode(name))
