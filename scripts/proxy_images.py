"""The images of the proxy at its smaller scales, as an image folder.

python scripts/proxy_images.py FOLDER digits: every second one of scikit-learn's digits, enlarged to 32 x 32 pixels.

python scripts/proxy_images.py FOLDER KIND ROOT: a part of CIFAR-10, which lies at ROOT as data.kind KIND. 400 training
images of each class train, 2,000 others of them join the 10,000 validation images: whether two methods differ by a
point is seen on many images, and a run needs few.
"""

import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from toe_train.data import open_datasets
from toe_train.errors import UserError

TRAIN, MORE_VAL = 400, 2000  # images of a class


def save(image: Image.Image, folder: Path, name: str) -> None:
    """Write an image without loss."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{name}.png")


def digits(folder: Path) -> None:
    """Few, and large enough for several patches."""
    for split, images in zip(("train", "val"), open_datasets("digits", None), strict=True):
        for number in range(0, len(images), 2):
            image, label = images[number]
            save(image.resize((32, 32)), folder / split / images.classes[label], str(number))


def cifar(folder: Path, kind: str, root: str) -> None:
    """In each class the first images train."""
    train, val = open_datasets(kind, root)
    seen: Counter[int] = Counter()
    for number in range(len(train)):
        image, label = train[number]
        seen[label] += 1
        if seen[label] <= TRAIN + MORE_VAL:
            split = "train" if seen[label] <= TRAIN else "val"
            save(image, folder / split / train.classes[label], f"train_{number:05}")
    for number in range(len(val)):
        image, label = val[number]
        save(image, folder / "val" / val.classes[label], f"val_{number:05}")


def main() -> None:
    """Makes the folder, which has its name when it is whole."""
    arguments = sys.argv[1:]
    if len(arguments) != (2 if arguments[1:2] == ["digits"] else 3):
        print("usage: python scripts/proxy_images.py FOLDER digits, or FOLDER KIND ROOT", file=sys.stderr)
        sys.exit(2)
    whole, *source = arguments
    part = Path(f"{whole}.part")
    try:
        if source == ["digits"]:
            digits(part)
        else:
            cifar(part, *source)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    part.rename(whole)


if __name__ == "__main__":
    main()
