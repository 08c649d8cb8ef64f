"""Which folders are classes and which files are images: one rule for every command that lists an image folder.

A class is a folder in the root; its images are the files below it whose suffix is an image's. What a system or a
program leaves among a user's images is neither, and a link to a folder that is listed anyway is not followed. What is
passed over is counted, so that a command can say it.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train.data.sources.index import Index, Row, Stamp, build_index
from toe_train.data.sources.names import NAMES_SHOWN, lookalikes, quoted, shorten
from toe_train.data.sources.passed_over import PassedOver, Reason, why_not_read
from toe_train.data.sources.remembered import remembered

AT_ONCE = 16  # folders that are listed: a slow disk answers each after a while

SPLITS = ("train", "val")

# Beside all names that begin with a dot (.DS_Store, ._x.jpg, .ipynb_checkpoints); compared without case.
LEFT_BEHIND = frozenset(
    [
        "@eadir",  # thumbnails of a Synology server
        "@tmp",
        "@recycle",  # of a QNAP server
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "__macosx",  # of an archive that was packed on a Mac
        "__pycache__",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    ]
)


class ClassFolders:
    """The classes of a folder of class folders, in the order of their sorted names, and the images of each.

    Where nothing is passed over, classes, images and order are those of torchvision's ImageFolder.

    `loose` are the names of the files beside the class folders. `stamps` are of the folders that were listed, as they
    were just before. `always`: names that are taken whatever they link to.

    Raises OSError where the folder, or one below it, cannot be listed.
    """

    def __init__(self, root: str | Path, always: tuple[str, ...] = ()) -> None:
        self._root = os.path.expanduser(str(root))
        self._passed: dict[str | None, PassedOver] = {None: PassedOver()}
        self.stamps = [Stamp.of(self._root)]
        folders, self.loose = self._entries()
        above = _with_all_above(os.path.realpath(self._root))
        own = {real for real, is_link in folders.values() if not is_link}
        for name, (real, is_link) in list(folders.items()):
            if is_link and name not in always and (real in own or real in above):
                self._passed[None].add(Reason.LINKED, name)
                del folders[name]
        self._real = {name: real for name, (real, _) in folders.items()}
        self._held = above | set(self._real.values())
        self.classes = sorted(folders)

    def _entries(self) -> tuple[dict[str, tuple[str, bool]], list[str]]:
        """Return the folders, with where they really are and whether they are links, and the other files' names."""
        folders, loose, real = {}, [], os.path.realpath(self._root)
        for entry in _sorted_entries(self._root):
            if is_left_behind(entry.name):
                self._passed[None].add(Reason.LEFT_BEHIND, entry.name)
            elif _is_folder(entry):
                folders[entry.name] = _where(entry, real)
            else:
                loose.append(entry.name)
        return folders, loose

    def images(self, name: str) -> list[str]:
        """Return the paths of a class's images, below the root."""
        passed = self._passed[name] = PassedOver()
        held = self._held - {self._real[name]}
        return _images_below(self._root, name, passed, held, self._real[name], self.stamps)

    def by_class(self) -> Iterator[list[str]]:
        """Yield the paths of each class's images, below the root."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self.images, self.classes)

    def everything(self) -> tuple[list[str], PassedOver]:
        """Return the paths below the root of all images, the loose ones too, and what is passed over then."""
        names = list(filter(is_image, self.loose))
        for name in self.classes:
            names += self.images(name)
        total = self._total()
        for name in self.loose:
            if not is_image(name):
                total.add(why_not_read(name), name)
        return names, total

    def passed_over(self) -> PassedOver:
        """Return what was passed over in the root and in the classes whose images were asked for."""
        total = self._total()
        for name in self.loose:
            total.add(Reason.OUTSIDE, name)
        return total

    def _total(self) -> PassedOver:
        total = PassedOver()
        for part in self._passed.values():
            total.update(part)
        return total

    def aside(self) -> str:
        """Return what was passed over as the end of a message about what is missing; empty for nothing."""
        texts = self.passed_over().texts()
        return f" (passed over: {'; '.join(texts)})" if texts else ""

    def notes(self) -> list[str]:
        """Return a line on each thing that a person should know of the listing."""
        found = self.passed_over().lines(self._root)
        for alike in lookalikes(self.classes):
            found.append(
                f"{self._root}: classes {' and '.join(map(quoted, alike))} look the same, and count as several"
            )
        shared = defaultdict(list)
        for name in self.classes:
            shared[self._real[name]].append(name)
        for group in filter(lambda names: len(names) > 1, shared.values()):
            found.append(f"{self._root}: classes {shorten(group)} are links to one folder, and have the same images")
        return found

    def inner(self, name: str) -> tuple[str, list[str]]:
        """Return the folder of a class, below the root, in which all its images lie in folders, and the names of these.

        Of several such folders, one in another, it is the one that holds more than one; no names where there is none.
        """
        parts = [path.split(os.sep) for path in self.images(name)]
        depth = 1
        while parts and all(len(part) > depth + 1 for part in parts):
            names = sorted({part[depth] for part in parts})
            if len(names) > 1:
                return os.path.join(*parts[0][:depth]), names
            depth += 1
        return name, []


def index_of_folder(root: str | Path, anew: bool = False) -> Index:
    """Return the index of a folder of class folders; it is kept until the time of one of the folders changes.

    anew: whatever was kept.

    Raises OSError where the folder, or one below it, cannot be listed.
    """
    folder = os.path.expanduser(str(root))
    return remembered(["image_folder", folder, os.path.realpath(folder)], lambda: _index(folder), anew)


def _index(folder: str) -> Index:
    listing = ClassFolders(folder)
    rows = ([Row(path, os.fsencode(path)) for path in paths] for paths in listing.by_class())
    found = build_index(listing.classes, rows, listing.stamps, [])
    loose = [name for name in listing.loose if is_image(name)][:NAMES_SHOWN]
    return found._replace(notes=listing.notes(), aside=listing.aside(), loose=loose)


def all_images(root: Path) -> tuple[list[str], list[str]]:
    """Return the sorted paths below a folder of what a run would take for images, and lines on what is passed over.

    root: holds train and val, or class folders. Images outside the class folders are taken too.

    Raises OSError where a folder cannot be listed.
    """
    top = ClassFolders(root, always=SPLITS)
    splits = [name for name in top.classes if name in SPLITS]
    top.classes = [name for name in top.classes if name not in SPLITS]
    names, passed = top.everything()
    notes = passed.lines(root)
    for split in splits:
        below, passed = ClassFolders(root / split).everything()
        names += [os.path.join(split, name) for name in below]
        notes += passed.lines(root / split)
    return sorted(names), notes


def _images_below(
    root: str, below: str, passed: PassedOver, held: set[str], real: str, stamps: list[Stamp]
) -> list[str]:
    """Return the paths below `root` of the images in its folder `below`, sorted by folder and then by name.

    passed: counts what is passed over. held: real paths of folders that are not to be visited. real: where the folder
    really is. stamps: gets those of the folders that are visited.
    """
    seen = set(held)
    found: list[tuple[str, list[str]]] = []
    folders, links = [(below, real)], list[tuple[str, str]]()
    while folders or links:  # links last: a folder is listed under its own name where it has one
        below, real = folders.pop() if folders else links.pop(0)
        if real in seen:
            passed.add(Reason.LINKED, below)
            continue
        seen.add(real)
        names, folder = [], os.path.join(root, below)
        stamps.append(Stamp.of(folder))
        for entry in _sorted_entries(folder):
            path = os.path.join(below, entry.name)
            if is_left_behind(entry.name):
                passed.add(Reason.LEFT_BEHIND, path)
            elif _is_folder(entry):
                inner, is_link = _where(entry, real)
                (links if is_link else folders).append((path, inner))
            elif not _is_file(entry):
                passed.add(Reason.NO_FILE, path)
            elif is_image(entry.name):
                names.append(path)
            else:
                passed.add(why_not_read(entry.name), path)
        found.append((below, names))
    return [path for _, names in sorted(found) for path in names]


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is what systems and programs leave among a user's images."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMG_EXTENSIONS)


def _sorted_entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as fault:
        if fault.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it can be opened without waiting for a writer; a link to nothing is a file that cannot be read."""
    return entry.is_symlink() or entry.is_file()


def _where(entry: os.DirEntry[str], real: str) -> tuple[str, bool]:
    """Return where a folder really is and whether it is a link; `real` is where the one that holds it is."""
    if entry.is_symlink():
        return os.path.realpath(entry.path), True
    return os.path.join(real, entry.name), False


def _with_all_above(folder: str) -> set[str]:
    return {folder, *map(str, Path(folder).parents)}
