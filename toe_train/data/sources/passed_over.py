"""What a listing of an image folder passes over, counted for each reason, so that a command can say it."""

from collections import defaultdict
from enum import Enum
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from toe_train.data.sources.formats import TO_JPEG
from toe_train.data.sources.names import NAMES_SHOWN, legible


class Reason(Enum):
    """Why something in an image folder is passed over; the value says it of one, and of several."""

    LEFT_BEHIND = (
        "file or folder that a system or a program left there",
        "files and folders that a system or a program left there",
    )
    LINKED = ("link to a folder that is listed anyway", "links to folders that are listed anyway")
    RENAMED = (
        "JPEG whose suffix is not read, to be renamed to .jpg",
        "JPEGs whose suffix is not read, to be renamed to .jpg",
    )
    CONVERTED = (
        f"image of a kind that is not read, to be converted ({TO_JPEG})",
        f"images of kinds that are not read, to be converted ({TO_JPEG})",
    )
    NO_IMAGE = ("file whose suffix is no image's", "files whose suffix is no image's")
    NO_FILE = ("pipe, socket or device", "pipes, sockets or devices")
    OUTSIDE = ("file outside the class folders", "files outside the class folders")


def why_not_read(name: str) -> Reason:
    """Return why a file whose suffix is none that is read is passed over."""
    lower = name.lower()
    if lower.endswith((".jfif", ".jpe")):
        return Reason.RENAMED
    if lower.endswith((".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2")):
        return Reason.CONVERTED
    return Reason.NO_IMAGE


class PassedOver:
    """How much of an image folder was passed over for each reason, with the first few paths."""

    def __init__(self) -> None:
        self.counts: dict[Reason, int] = defaultdict(int)
        self.examples: dict[Reason, list[str]] = defaultdict(list)

    def add(self, reason: Reason, path: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        if len(self.examples[reason]) < NAMES_SHOWN:
            self.examples[reason].append(path)

    def update(self, other: "PassedOver") -> None:
        """Count what another counted."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            self.examples[reason] = (self.examples[reason] + other.examples[reason])[:NAMES_SHOWN]

    def lines(self, root: str | Path) -> list[str]:
        """Return a line for each reason, in a fixed order."""
        return [f"{root}: passed over {text}" for text in self.texts()]

    def texts(self) -> list[str]:
        """Return the same without the folder."""
        found = []
        for reason in Reason:
            if count := self.counts.get(reason):
                more = f", ... ({count} in all)" if count > NAMES_SHOWN else ""
                known = f" (known are {' '.join(IMG_EXTENSIONS)})" if reason is Reason.NO_IMAGE else ""
                shown = ", ".join(map(legible, self.examples[reason]))
                found.append(f"{count} {reason.value[count > 1]}{known}: {shown}{more}")
        return found
