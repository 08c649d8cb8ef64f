"""Unreadable images that a run passes over: listed, counted, limited."""

import contextlib
import json
import os
from pathlib import Path

from toe_train.errors import RunFailed


class SkippedImages:
    """A file of one JSON object for each time an image was passed over, appended to by every process and worker.

    path: the file, in the run folder. limit: different images that a run may do without.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit

    def note(self, image: str, reason: str) -> None:
        """Add one; a single short write in append mode, which processes cannot tear apart."""
        line = json.dumps({"image": image, "reason": reason}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def images(self) -> set[str]:
        """Return the images passed over so far, each once."""
        if not self.path.exists():
            return set()
        found = set()
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # torn by a full disk
                found.add(json.loads(line)["image"])
        return found

    def require_within_limit(self) -> None:
        """Raise RunFailed where more images than the limit were passed over."""
        count = len(self.images())
        if count > self.limit:
            raise RunFailed(
                f"{count} images could not be read, and data.max_skipped allows {self.limit}; {self.path} lists them. "
                "Repair or remove them (`toe-tools doctor --config FILE` finds all), or raise the limit"
            )
