"""`toe-tools view`: pictures of what Token Expansion does to images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from toe_train.analysis.features import draw_features, token_sets
from toe_train.analysis.tables import table
from toe_train.analysis.view import draw_kept
from toe_train.analysis.viewer import open_viewer
from toe_train.build.weights.asked import listed
from toe_train.cli.asked import open_asked
from toe_train.cli.found import least_score
from toe_train.errors import UserError


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Draws; returns the exit code."""
    try:
        blocks = [int(part) for part in options.blocks.split(",")]
    except ValueError:
        raise UserError(f"--blocks {options.blocks}: give numbers joined by commas, such as 1,2,4") from None
    for path in filter(None, (options.output, options.features)):
        if not Path(path).suffix or Path(path).is_dir():
            raise UserError(f"{path} must be a file with the suffix of its format, such as {Path(path) / 'kept.png'}")
    images = [Path(path) for path in options.images]
    if missing := [str(path) for path in images if not path.is_file()]:
        raise UserError(f"--images {listed(missing)}: there is no such file; give image files")
    trained = open_asked(options, "view")
    least = least_score(options.min_score, trained)
    viewer = open_viewer(trained, images)
    print("".join(f"  {line}\n" for line in viewer.told), end="")
    if options.stage not in viewer.stages:
        legal = " or ".join(map(str, viewer.stages))
        raise UserError(f"--stage {options.stage}: the run drops tokens in stage {legal}")
    sets = []
    if options.features:  # before anything is written, since it may refuse the blocks
        sets = [token_sets(viewer, photo, blocks, options.stage) for photo in viewer.photos]
    _save(draw_kept(viewer, least), options.output)
    if options.features:
        _save(draw_features(viewer, sets), options.features)
        rows = [
            (photo.name, str(found.block), *(f"{distance:.1f}" for distance in found.distances), *_cosines(found))
            for photo, of_image in zip(viewer.photos, sets, strict=True)
            for found in of_image
        ]
        heads = ("image", "block", "t-SNE distance, all", "ToE's", "cosine distance, all", "ToE's")
        print(table(heads, rows))
    print(f"drawn: {options.output}{f' and {options.features}' if options.features else ''}")
    return 0


def _cosines(found: Any) -> tuple[str, str]:
    return f"{found.full_cosine:.3f}", f"{found.reduced_cosine:.3f}"


def _save(figure: Any, path: str) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:  # ValueError: a format that matplotlib does not know
        raise UserError(f"{path} cannot be written ({error}); name another file, such as kept.png") from None
