"""What `toe-tools labels` writes down about the label files that it makes; published ones come without."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from toe_train.data.sources.names import compare_classes
from toe_train.errors import UserError

NAME = "labels.json"


@dataclass(frozen=True)
class LabelRecord:
    """How a folder of label files was made; it lies in the folder.

    teacher, weights: the teacher's name, and "pretrained", "random" or the path and checksum of a file. image_size: its
    input's side in pixels. geometry: see `JointTransform`. classes: the class folders, in the order of the class ids.
    exif_orientation: whether the teacher saw images turned as their EXIF blocks say.
    """

    teacher: str
    weights: str
    image_size: int
    geometry: str
    classes: list[str]
    exif_orientation: str = "ignore"  # of a record of an earlier version

    @classmethod
    def read(cls, root: Path) -> LabelRecord | None:
        """Return the record of a folder, None where it has none. Raises UserError where it is damaged."""
        path = root / NAME
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as fault:
            raise UserError(
                f"{path} is not the record that `toe-tools labels` writes ({fault}): remove it if the label files "
                "beside it are of known origin"
            ) from None

    def write(self, root: Path) -> None:
        """Put the record into a folder, whole or not at all."""
        temporary = root / f".{NAME}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, root / NAME)


def record_fault(root: Path, geometry: str, exif_orientation: str, classes: list[str]) -> str | None:
    """Return why the label files of a folder cannot serve, by their record, or None.

    geometry, exif_orientation, classes: the run's; the teacher must have seen images of the same.
    """
    try:
        record = LabelRecord.read(root)
    except UserError as fault:
        return str(fault)
    if record is None:
        return None
    if record.geometry != geometry:
        return (
            f"the label files in {root} were made with geometry {record.geometry}, and token_labels.geometry is "
            f"{geometry}: set token_labels.geometry={record.geometry}"
        )
    if record.exif_orientation != exif_orientation:
        return (
            f"the label files in {root} were made with --exif-orientation {record.exif_orientation}, and "
            f"data.exif_orientation is {exif_orientation}: set data.exif_orientation={record.exif_orientation}"
        )
    if record.classes != classes:
        return f"label files in {root}: {compare_classes(record.classes, classes, ('their teacher', 'train'))}"
    return None
