"""A data set of ImageNet's size whose images are empty, as a folder and as archives: to time a run's start.

python scripts/made_up_images.py OUTPUT [IMAGES]: OUTPUT/folder and OUTPUT/tars; 1,281,167 images and 50,000 by default.
"""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

CLASSES = 1000


def names(images: int, split: str) -> Iterator[str]:
    """Yield the paths below train or val, in the order of the classes."""
    for number in range(CLASSES):
        for index in range(number * images // CLASSES, (number + 1) * images // CLASSES):
            yield f"n{number:08}/n{number:08}_{split}_{index:07}.JPEG"


def main(output: Path, images: int) -> None:
    """Make both; a file is there for each image, and a member."""
    (output / "tars").mkdir(parents=True)
    for split, count in (("train", images), ("val", max(CLASSES, images * 50_000 // 1_281_167))):
        for number in range(CLASSES):
            (output / "folder" / split / f"n{number:08}").mkdir(parents=True)
        with tarfile.open(output / "tars" / f"{split}.tar", "w") as archive:
            for name in names(count, split):
                (output / "folder" / split / name).touch()
                archive.addfile(tarfile.TarInfo(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_281_167)
