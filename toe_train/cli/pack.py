"""`toe-tools pack`: a smaller copy of an image folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toe_train.cli.exits import USER_ERROR
from toe_train.data import Packing, pack_images


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
