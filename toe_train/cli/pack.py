"""`toe-tools pack`: a smaller copy of an image folder."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from toe_train.cli.exits import USER_ERROR
from toe_train.data import Packing, pack_images

TEXT = "Copy an image folder with smaller images, which load faster."


def add_options(sub: argparse.ArgumentParser) -> None:
    """Gives the subcommand its options."""
    sub.add_argument("--images", required=True, metavar="DIR", help="folder with train/ and val/, or any above images")
    sub.add_argument("--output", required=True, metavar="DIR", help="gets the copy; continued if it is there")
    sub.add_argument(
        "--short-side", type=int, default=256, metavar="N", help="pixels; smaller images stay (default: 256)"
    )
    sub.add_argument("--quality", type=int, default=95, metavar="N", help="of the JPEGs, 1 to 100 (default: 95)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sub.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: one a core)")


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Packs the images; returns the exit code: 0 where there is a copy, though an image was left out of it."""
    output = Path(options.output)
    packing = Packing(options.short_side, options.quality)
    packed = pack_images(Path(options.images), output, packing, options.workers, progress=sys.stderr.isatty())
    print(f"{output}: {packed.written} images written, {packed.found} were there; use it with data.root={output}")
    for line in packed.notes:
        print(f"note: {line}")
    if packed.faults:
        print(f"{len(packed.faults)} left out:", *packed.faults, sep="\n  ")
    if packed.strays:
        print(f"{len(packed.strays)} in the copy without an original; remove them:", *packed.strays, sep="\n  ")
    return 0 if packed.written or packed.found else USER_ERROR
