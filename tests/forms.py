"""An image folder in the other forms that a run reads: each function makes one, and returns the overrides for it."""

import io
import json
import tarfile
from pathlib import Path

SPLITS = ("train", "val")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def images(root: Path, split: str) -> list[Path]:
    """Return the image files of a split, in the order of no listing."""
    return sorted((root / split).rglob("*.*"), key=lambda path: path.name[::-1])


def folder(root: Path, output: Path) -> list[str]:
    return ["data.kind=image_folder", f"data.root={root}"]


def tar_of_tars(root: Path, output: Path) -> list[str]:
    """ImageNet's training images; validation flat, with a list."""
    output.mkdir()
    with tarfile.open(output / "ILSVRC2012_img_train.tar", "w") as outer:
        for path in sorted((root / "train").iterdir(), reverse=True):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for image in sorted(path.iterdir(), reverse=True):
                    add(inner, image.name, image.read_bytes())
            add(outer, f"{path.name}.tar", content.getvalue())
    names = sorted(path.name for path in (root / "train").iterdir())
    with tarfile.open(output / "ILSVRC2012_img_val.tar", "w") as flat, (output / "val.txt").open("w") as file:
        for image in images(root, "val"):
            add(flat, image.name, image.read_bytes())
            file.write(f"{image.name} {names.index(image.parent.name)}\n")
    return ["data.kind=tar", f"data.root={output}", f"data.val_list={output / 'val.txt'}"]


def flat_tar(root: Path, output: Path) -> list[str]:
    """class/image, in train.tar and val.tar."""
    output.mkdir()
    for split in SPLITS:
        with tarfile.open(output / f"{split}.tar", "w") as archive:
            for image in images(root, split):
                archive.add(image, f"./{image.relative_to(root / split)}")
    return ["data.kind=tar", f"data.root={output}"]


def one_tar(root: Path, output: Path) -> list[str]:
    """Train and val in one archive, below a folder."""
    output.mkdir()
    with tarfile.open(output / "all.tar", "w") as archive:
        archive.add(root, "images")
    return ["data.kind=tar", f"data.root={output / 'all.tar'}"]


def folders_of_tars(root: Path, output: Path) -> list[str]:
    """An archive for each class."""
    for split in SPLITS:
        (output / split).mkdir(parents=True)
        for path in (root / split).iterdir():
            with tarfile.open(output / split / f"{path.name}.tar", "w") as archive:
                for image in path.iterdir():
                    archive.add(image, image.name)
    return ["data.kind=tar", f"data.root={output}"]


def shards(root: Path, output: Path) -> list[str]:
    """WebDataset's, labels in .cls for train and in .json for val."""
    output.mkdir()
    for split in SPLITS:
        found = images(root, split)
        for number in range(2):
            with tarfile.open(output / f"photos-{split}-{number:04}.tar", "w") as archive:
                for image in found[number::2]:
                    name = image.relative_to(root / split)
                    add(archive, str(name), image.read_bytes())
                    label = name.parts[0]
                    if split == "train":
                        add(archive, str(name.with_suffix(".cls")), label.encode())
                    else:
                        add(archive, str(name.with_suffix(".json")), json.dumps({"class": label}).encode())
    return ["data.kind=tar", f"data.root={output}", "data.label_key=class"]


def lists(root: Path, output: Path) -> list[str]:
    """CSV for train; JSON lines and a flat folder for val."""
    (output / "val").mkdir(parents=True)
    with (output / "train.csv").open("w") as file:
        file.write("label,path\n")
        for image in images(root, "train"):
            file.write(f"{image.parent.name},{image.relative_to(root)}\n")
    (output / "train").symlink_to(root / "train")
    with (output / "val.jsonl").open("w") as file:
        for image in images(root, "val"):
            (output / "val" / image.name).write_bytes(image.read_bytes())
            file.write(json.dumps({"path": image.name, "label": image.parent.name}) + "\n")
    given = [
        f"data.{split}_list={output / split}{suffix}" for split, suffix in zip(SPLITS, (".csv", ".jsonl"), strict=True)
    ]
    return ["data.kind=list", f"data.root={output}", *given]


FORMS = (tar_of_tars, flat_tar, one_tar, folders_of_tars, shards, lists)
