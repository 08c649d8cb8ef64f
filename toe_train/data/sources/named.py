"""Images that are named one by one, without classes: what a trained model is asked about."""

from collections.abc import Sequence

from PIL import Image

from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.span import Span


class NamedImages:
    """Image files, and images in archives, in a given order; each has the label 0, which says nothing."""

    def __init__(self, paths: Sequence[str | Span], exif_orientation: ExifOrientation = "ignore") -> None:
        self.classes = [""]
        self._paths = paths
        self._exif_orientation: ExifOrientation = exif_orientation

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return load_rgb(self._paths[index], self._exif_orientation), 0

    def describe(self, index: int) -> str:
        """Return the file's path as it was given, or the archive's with the name in it."""
        return str(self._paths[index])

    def require_here(self) -> None:
        """Each that is not there is told when it is read."""

    def counts(self) -> list[int]:
        """Return the number of images."""
        return [len(self)]

    def notes(self) -> list[str]:
        """Nothing is passed over."""
        return []

    def digest(self) -> str:
        """Return the paths: nothing else is known of them."""
        return "\n".join(map(str, self._paths))
