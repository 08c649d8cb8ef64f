"""The images of the proxy at its smaller scales, as an image folder.

python scripts/proxy_images.py FOLDER digits: every second one of scikit-learn's digits, enlarged to 32 x 32 pixels.

python scripts/proxy_images.py FOLDER KIND ROOT: a part of CIFAR-10, which lies at ROOT as data.kind KIND. 700 training
images of each class train, 2,000 others of them join the 10,000 validation images: whether two methods differ by a
point is seen on many images, and a run needs few.

A folder that is there already and was made so stays as it is; made_from.txt in it says of what it was made.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from toe_train.errors import UserError

TRAIN, MORE_VAL = 700, 2000  # images of a class


def save(image: Image.Image, folder: Path, name: str) -> None:
    """Write an image without loss."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{name}.png")


def digits(folder: Path) -> None:
    """Few, and large enough for several patches."""
    from toe_train.data import open_datasets  # takes seconds, and most calls find the folder made

    for split, images in zip(("train", "val"), open_datasets("digits", None), strict=True):
        for number in range(0, len(images), 2):
            image, label = images[number]
            save(image.resize((32, 32)), folder / split / images.classes[label], str(number))


def cifar(folder: Path, kind: str, root: str) -> None:
    """In each class the first images train.

    Raises:
        UserError: a class has too few.
    """
    from toe_train.data import open_datasets

    train, val = open_datasets(kind, root)
    seen: Counter[int] = Counter()
    for number in range(len(train)):
        image, label = train[number]
        seen[label] += 1
        if seen[label] <= TRAIN + MORE_VAL:
            split = "train" if seen[label] <= TRAIN else "val"
            save(image, folder / split / train.classes[label], f"train_{number:05}")
    label, count = min(seen.items(), key=lambda found: found[1])
    if count < TRAIN + MORE_VAL:
        raise UserError(
            f"data.root={root}: class {train.classes[label]} has {count} training images; {TRAIN} of each train and "
            f"{MORE_VAL} others are evaluated on: give all of CIFAR-10, 5,000 a class"
        )
    for number in range(len(val)):
        image, label = val[number]
        save(image, folder / "val" / val.classes[label], f"val_{number:05}")


def make(whole: Path, source: list[str]) -> None:
    """Makes the folder, which has its name when it is whole.

    Raises:
        UserError: it is there, made otherwise, or cannot be made of this source.
    """
    from_what = " ".join(source if source == ["digits"] else [str(TRAIN), str(MORE_VAL), *source])
    told, part = whole / "made_from.txt", whole.with_name(f"{whole.name}.part")
    if whole.is_dir():
        there = told.read_text(encoding="utf-8").strip() if told.is_file() else "unknown"
        if there == from_what:
            return
        raise UserError(
            f"{whole} was made from {there!r}, and {from_what!r} is asked for now: give another --output, or what it "
            "was made from"
        )
    shutil.rmtree(part, ignore_errors=True)
    if source == ["digits"]:
        digits(part)
    else:
        cifar(part, *source)
    (part / told.name).write_text(f"{from_what}\n", encoding="utf-8")
    part.rename(whole)


def main() -> None:
    """Reads the arguments."""
    arguments = sys.argv[1:]
    if len(arguments) != (2 if arguments[1:2] == ["digits"] else 3):
        print("usage: python scripts/proxy_images.py FOLDER digits, or FOLDER KIND ROOT", file=sys.stderr)
        sys.exit(2)
    try:
        make(Path(arguments[0]), arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
