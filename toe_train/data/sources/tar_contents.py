"""What an archive would be as a folder: of several members of one name the last, links as what they point at."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from toe_train.data.sources.index import Stamp
from toe_train.data.sources.listing import is_image, is_left_behind
from toe_train.data.sources.names import legible
from toe_train.data.sources.passed_over import PassedOver, Reason, why_not_read
from toe_train.data.sources.tar_members import Kind, Member, TarFile
from toe_train.errors import UserError

SUFFIX = ".tar"
LINKS_IN_A_ROW = 40  # as the system follows them


class Place(NamedTuple):
    """Where a file's bytes are: the archive's number, the first byte, the length."""

    archive: int
    offset: int
    length: int


class Contents:
    """The files and folders of an archive, or of one that lies within another.

    name: of the archive in messages. stem: its file name without the suffix. under: what its members' names stand
    below, for a person: the inner archive's name and a slash, or nothing. files: by name. folders: names of those that
    it holds as members. others: names of pipes and devices. notes: lines for a person.
    """

    def __init__(self, name: str, stem: str, under: bytes, members: Iterator[Member], number: int) -> None:
        self.name, self.stem, self.under = name, stem, under
        self.files: dict[bytes, Place] = {}
        self.folders: set[bytes] = set()
        self.others: list[bytes] = []
        self.notes: list[str] = []
        links: dict[bytes, bytes] = {}
        again = 0
        for member in members:
            if member.kind is Kind.FOLDER:
                self.folders.add(member.name)
                continue
            if member.name in self.files or member.name in links:
                again += 1
                self.files.pop(member.name, None)
                links.pop(member.name, None)
            if member.kind is Kind.FILE:
                self.files[member.name] = Place(number, member.offset, member.length)
            elif member.kind is Kind.HARD_LINK:
                self._link(member.name, posixpath.normpath(member.target).lstrip(b"/"))
            elif member.kind is Kind.SYMBOLIC_LINK:
                links[member.name] = member.target
            else:
                self.others.append(member.name)
        if again:
            self.notes.append(f"{name}: {again} members are followed by others of the same names, which count")
        self._follow(links)

    def _link(self, name: bytes, target: bytes) -> None:
        if target not in self.files:
            raise self._lost(name, target)
        self.files[name] = self.files[target]

    def _follow(self, links: dict[bytes, bytes]) -> None:
        """Put what symbolic links point at in their places; one to a folder of the archive is listed there anyway."""
        folders = self.folders | {posixpath.dirname(name) for name in self.files} if links else set()
        for name, target in links.items():
            if any(is_left_behind(part) for part in os.fsdecode(name).split("/")):
                continue
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            for _ in range(LINKS_IN_A_ROW):
                if to not in links:
                    break
                to = posixpath.normpath(posixpath.join(posixpath.dirname(to), links[to]))
            if to in self.files:
                self.files[name] = self.files[to]
            elif to in folders or any(folder.startswith(to + b"/") for folder in folders):
                self.notes.append(
                    f"{self.name}: passed over {legible(os.fsdecode(name))}, a link to a folder that is listed anyway"
                )
            else:
                raise self._lost(name, target)

    def _lost(self, name: bytes, target: bytes) -> UserError:
        shown, to = (legible(os.fsdecode(text)) for text in (name, target))
        return UserError(
            f"{self.name}: {shown} is a link to {to}, which the archive does not hold before its end; make it anew, "
            "with --dereference (-h)"
        )

    def below(self, folders: tuple[str, ...]) -> bool:
        """Keep what lies below one of `folders`, the last, where the archive holds nothing beside them at its top.

        Return whether it is so.

        They may lie in one more folder, as an archive of train/ and val/, or of one of them, is often made.
        """
        wanted, prefix = {os.fsencode(folder) for folder in folders}, b""
        for _ in range(2):
            start = len(prefix)
            inside = (name[start:] for names in (self.files, self.folders) for name in names if name.startswith(prefix))
            tops = {name.partition(b"/")[:2] for name in inside if name}
            seen = {pair for pair in tops if not is_left_behind(os.fsdecode(pair[0]))}
            here = {top for top, slash in seen if slash or prefix + top in self.folders}
            if any(not slash and prefix + top in self.files and is_image(os.fsdecode(top)) for top, slash in seen):
                return False
            if here and here <= wanted:
                self._keep_below(prefix + os.fsencode(folders[-1]) + b"/")
                return True
            if len(here) != 1:
                return False
            prefix += here.pop() + b"/"
        return False

    def _keep_below(self, prefix: bytes) -> None:
        start = len(prefix)
        self.under += prefix
        self.files = {name[start:]: place for name, place in self.files.items() if name.startswith(prefix)}
        self.folders = {name[start:] for name in self.folders if name.startswith(prefix)}
        self.others = [name[start:] for name in self.others if name.startswith(prefix)]

    def images(self, passed: PassedOver) -> dict[bytes, Place]:
        """Return the files that are images; what is passed over, as in a folder, is counted in `passed`."""
        found, seen = {}, set[str]()
        for name, place in self.files.items():
            text = os.fsdecode(name)
            if hidden := _left_behind(text):
                if hidden not in seen:
                    seen.add(hidden)
                    passed.add(Reason.LEFT_BEHIND, hidden)
            elif is_image(text):
                found[name] = place
            else:
                passed.add(why_not_read(text), text)
        for name in self.others:
            passed.add(Reason.NO_FILE, os.fsdecode(name))
        return found

    def top_folders(self) -> set[str]:
        """Return the names of its top folders, those without images too, but for what systems leave behind."""
        found = {os.fsdecode(name.partition(b"/")[0]) for name in self.folders}
        found |= {os.fsdecode(name.partition(b"/")[0]) for name in self.files if b"/" in name}
        return {name for name in found if name and not is_left_behind(name)}


def read_contents(path: str, number: int) -> tuple[list[Contents], Stamp]:
    """Return what an archive holds, or where it holds archives and no images, what each of these does; and its stamp.

    Raises UserError where it is damaged, OSError where it cannot be read.
    """
    stamp = Stamp.of(path)
    stem = os.path.basename(path)[: -len(SUFFIX)]  # in any case
    descriptor = os.open(path, os.O_RDONLY)
    try:
        whole = Contents(path, stem, b"", TarFile(descriptor, path).members(), number)
        inner = {
            os.fsdecode(name): place
            for name, place in whole.files.items()
            if name.lower().endswith(b".tar") and not _left_behind(os.fsdecode(name))
        }
        if not inner or any(is_image(os.fsdecode(name)) for name in whole.files):
            return [whole], stamp
        parts = []
        for name, place in sorted(inner.items()):
            shown = f"{path}/{name}"
            members = TarFile(descriptor, shown, place.offset, place.offset + place.length).members()
            part = Contents(shown, posixpath.basename(name)[: -len(SUFFIX)], os.fsencode(name) + b"/", members, number)
            parts.append(part)
        parts[0].notes[:0] = whole.notes
        return parts, stamp
    finally:
        os.close(descriptor)


def _left_behind(path: str) -> str:
    """Return the first part of a path that a system left there, with what is above it; empty for none."""
    parts = path.split("/")
    for count, part in enumerate(parts, 1):
        if is_left_behind(part):
            return "/".join(parts[:count])
    return ""
