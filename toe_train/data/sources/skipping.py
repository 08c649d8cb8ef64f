"""Unreadable images that a run passes over: listed, counted, limited."""

import contextlib
import json
import os
from pathlib import Path

from toe_train.errors import RunFailed


class SkippedImages:
    """A file with one JSON object for each image that was passed over, and beside it what each process noted.

    A process and its loader workers append to a file of their own: lines that several machines append to one file tear
    each other apart on NFS. The main process puts the images of all these files together, each once.

    path: the list, in the run folder; the processes' files lie in a folder of its name without the suffix. limit:
    different images that a run may do without. rank: of this process.
    """

    def __init__(self, path: Path, limit: int, rank: int = 0) -> None:
        self.path = path
        self.limit = limit
        self._parts = path.with_suffix("")
        self._own = self._parts / f"rank{rank}.jsonl"
        self._noted: set[str] = set()  # by this process of the machine, which may be one of several workers

    def note(self, image: str, reason: str) -> None:
        """Add one; a single short write in append mode, which processes of one machine cannot tear apart."""
        if image in self._noted:
            return
        self._noted.add(image)
        self._parts.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"image": image, "reason": reason}) + "\n"
        descriptor = os.open(self._own, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def images(self) -> set[str]:
        """Return the images passed over so far, each once."""
        return set(self.reasons())

    def gather(self) -> int:
        """Bring the list up to date, for the main process alone; return how many images it holds."""
        reasons = self.reasons()
        if len(reasons) > len(_read(self.path)):
            lines = [json.dumps({"image": image, "reason": reason}) + "\n" for image, reason in reasons.items()]
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("".join(lines), encoding="utf-8")
            os.replace(temporary, self.path)
        return len(reasons)

    def require_within_limit(self) -> None:
        """Bring the list up to date, for the main process alone.

        Raises RunFailed where more images than the limit were passed over.
        """
        count = self.gather()
        if count > self.limit:
            raise RunFailed(
                f"{count} images could not be read, and data.max_skipped allows {self.limit}; {self.path} lists them. "
                "Repair or remove them (`toe-tools doctor --config FILE` finds all), or raise the limit"
            )

    def reasons(self) -> dict[str, str]:
        """Return why each image was passed over, those of the list first."""
        found = _read(self.path)
        for part in sorted(self._parts.glob("*.jsonl")):
            for image, reason in _read(part).items():
                found.setdefault(image, reason)
        return found


def _read(path: Path) -> dict[str, str]:
    """Return the reason of each image in a file; what a full disk left of a line is left out."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            found.setdefault(entry["image"], entry["reason"])
    return found
