"""Images that are named one by one, without classes: what a trained model is asked about."""

from collections.abc import Sequence

from PIL import Image

from toe_train.data.augmentation.box_transform import BoxTarget, Size
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
        return self.image(index), 0

    def image(self, index: int) -> Image.Image:
        """Return an image, RGB.

        Raises UserError where it cannot be read.
        """
        return load_rgb(self._paths[index], self._exif_orientation)

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


class NamedScenes:
    """Image files in a given order, of whose objects nothing is known: a detector is asked about them."""

    def __init__(self, paths: Sequence[str | Span], exif_orientation: ExifOrientation = "ignore") -> None:
        self._named = NamedImages(paths, exif_orientation)

    def __len__(self) -> int:
        return len(self._named)

    def __getitem__(self, index: int) -> tuple[Image.Image, BoxTarget]:
        return self._named.image(index), BoxTarget.none()

    def target(self, index: int) -> BoxTarget:
        """Return no objects."""
        return BoxTarget.none()

    def size(self, index: int) -> Size:
        """Return a size that stands for that of an image that cannot be read."""
        return 1, 1

    def describe(self, index: int) -> str:
        """Return the file's path, as it was given."""
        return self._named.describe(index)
