"""What a look over a data set finds: what a run would end at, what a person should know, and what is there.

What is to be counted of single images (a wrong orientation, say) is a remark in `Seen`, and needs nothing else: it is
counted and told with the rest.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from toe_train.data.sources.names import NAMES_SHOWN, legible


class Fault(NamedTuple):
    """One line on what a run would end at; `file`: the image that is to be replaced or removed, if it is one."""

    text: str
    file: Path | None = None


class Seen(NamedTuple):
    """What one image is: why it cannot be read, or None; width and height in pixels; what is to be counted of it.

    A remark is a clause that follows "N images": "have an EXIF orientation, which is ignored".
    """

    fault: str | None
    size: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()


@dataclass
class ClassFound:
    """One class: number of images in each of train and val, and the smallest and largest of those that were decoded.

    Sizes are (width, height) in pixels, ordered by area.
    """

    counts: dict[str, int] = field(default_factory=dict)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None

    def see(self, size: tuple[int, int]) -> None:
        """Take an image's size into account."""
        if self.smallest is None or _area(size) < _area(self.smallest):
            self.smallest = size
        if self.largest is None or _area(size) > _area(self.largest):
            self.largest = size


class Findings:
    """What `examine` found.

    faults: what a run would end at, in the order of the check. notes: a line on each thing that a person should know
    and that ends no run. classes: by name. images: number in each of train and val, where an image has not one class.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.listed: list[str] = []
        self.classes: dict[str, ClassFound] = defaultdict(ClassFound)
        self.images: dict[str, int] = {}
        self._remarked: dict[str, list[str]] = defaultdict(list)
        self._counted: dict[str, int] = defaultdict(int)

    def add(self, *texts: str) -> None:
        """Add faults of the data set as a whole."""
        self.faults += map(Fault, texts)

    def see(self, path: Path, name: str | None, seen: Seen) -> None:
        """Take what was seen of an image into account; `name`: its class, if it has one."""
        if seen.fault is not None:
            self.faults.append(Fault(seen.fault, path))
        if seen.size is not None and name is not None:
            self.classes[name].see(seen.size)
        for remark in seen.remarks:
            self._counted[remark] += 1
            if len(self._remarked[remark]) < NAMES_SHOWN:
                self._remarked[remark].append(str(path))

    @property
    def notes(self) -> list[str]:
        """Of the listing, and of single images."""
        return self.listed + [
            f"{self._counted[remark]} images {remark}: {', '.join(map(legible, paths))}"
            + (", ..." if self._counted[remark] > len(paths) else "")
            for remark, paths in self._remarked.items()
        ]

    @property
    def unreadable(self) -> list[Path]:
        """Images that are to be replaced or removed."""
        return [fault.file for fault in self.faults if fault.file is not None]

    def count(self, split: str) -> int:
        """Return the number of images in train or val."""
        if split in self.images:
            return self.images[split]
        return sum(found.counts.get(split, 0) for found in self.classes.values())


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
