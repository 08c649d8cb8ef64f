"""Figures of the tokens that a run kept: the pictures that it drew in its TensorBoard, at the start of each stage."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toe_train.analysis.figures import Figure
from toe_train.analysis.runs import Row
from toe_train.build.pictures import KEPT_TOKENS

CAPTION = (
    "Images as training sees them at the start of the stage; hatched: averaged into the kept patches, or left out."
)


def kept_figures(rows: Sequence[Row]) -> list[Figure]:
    """One for each row whose runs hold such a picture, of the first stage; none where the folders came without."""
    found = []
    for row in rows:
        pictures = (picture for run in row.runs if row.config.expansion and (picture := _first(run.tensorboard)))
        if (picture := next(pictures, None)) is not None:
            epoch, encoded = picture
            title = f"What {row.name} keeps at epoch {epoch}"
            found.append(Figure(f"kept_{row.name}", title, CAPTION, _shows(encoded), 0))
    return found


def _first(folder: Path) -> tuple[int, bytes] | None:
    """Epoch, from 1, and PNG of the first picture in a folder of TensorBoard."""
    if not folder.is_dir():
        return None
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0})
    events.Reload()
    if KEPT_TOKENS not in events.Tags()[IMAGES]:
        return None
    first = min(events.Images(KEPT_TOKENS), key=lambda event: event.step)
    return first.step, first.encoded_image_string


def _shows(encoded: bytes) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        from PIL import Image

        axes.imshow(Image.open(io.BytesIO(encoded)), interpolation="nearest")
        axes.set_axis_off()

    return draw
