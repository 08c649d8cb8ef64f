"""Look over the label files of training images: is there one for each, and are all as the format says?"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from toe_train.data.labels.files import TokenLabelFiles
from toe_train.data.labels.record import record_fault
from toe_train.data.sources.names import shorten
from toe_train.data.spread import spread
from toe_train.errors import UserError


def check_labels(
    root: Path,
    geometry: str,
    exif_orientation: str,
    classes: list[str],
    images: list[tuple[Path, int]],
    whole: bool,
    progress: bool,
) -> list[str]:
    """Return the faults of the label files of training images; see `examine`.

    geometry, exif_orientation: the run's. images: path and label of those that are looked at. whole: they are all, so
    that shared files are found too.
    """
    if not root.is_dir():
        return [f"{root} is not a folder: set token_labels.root to the folder that holds <class>/<image>.pt"]
    if fault := record_fault(root, geometry, exif_orientation, classes):
        return [fault]
    files = TokenLabelFiles(root, classes)
    faults = list(_shared_labels(files, images)) if whole else []
    missing = [str(path.relative_to(root)) for image in images if not (path := files.path(*image)).is_file()]
    if missing:
        faults.append(
            f"{len(missing)} of {len(images)} training images that were looked at have no label file in {root}: "
            f"{shorten(missing)}; make them with `toe-tools labels`, or set token_labels.root to the folder that holds "
            "them"
        )
    present = [image for image in images if files.path(*image).is_file()]
    fault_of = partial(_fault_of_labels, files)
    # The first one's size is what all are held against, in other processes too.
    found = [*map(fault_of, present[:1]), *spread(fault_of, present[1:], whole, progress)]
    return faults + [fault for fault in found if fault is not None]


def _shared_labels(files: TokenLabelFiles, images: list[tuple[Path, int]]) -> Iterator[str]:
    """Yield a line on images that one label file would have to serve."""
    uses = Counter(files.path(*image) for image in images)
    sharing = [str(image[0]) for image in images if uses[files.path(*image)] > 1]
    if sharing:
        yield (
            f"{len(sharing)} training images share their label file with another, as a name counts up to its first "
            f"'.': {shorten(sharing)}; rename them"
        )


def _fault_of_labels(files: TokenLabelFiles, item: tuple[Path, int]) -> str | None:
    try:
        files.read(*item)
    except UserError as fault:
        return str(fault)
    return None
