"""`toe-tools split`: train and val from one folder of photos."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from toe_train import data
from toe_train.analysis.tables import table
from toe_train.cli.tool_options import MOST_CLASSES


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Splits the photos; returns the exit code: 0 where there is a split, though a file was left out of it."""
    output = Path(options.output)
    splitting = data.Splitting(options.val, options.seed, options.form)
    found = data.split_images(Path(options.photos), output, splitting, progress=sys.stderr.isatty())
    for line in found.notes:
        print(f"note: {line}")
    if found.faults:
        print(f"{len(found.faults)} left out:", *found.faults, sep="\n  ")
    if len(found.counts) <= MOST_CLASSES:
        rows = [(data.legible(name), *map(str, counts)) for name, counts in found.counts.items()]
        print(table(("class", *data.SPLITS), rows))
    train, val = (sum(counts) for counts in zip(*found.counts.values(), strict=True))
    there = "" if found.is_new else " (it was there already)"
    use = shlex.join(_overrides(options.form, Path(options.photos), output))
    print(f"{output}: {train} train and {val} val images in {len(found.counts)} classes{there}; train on it with {use}")
    return 0


def _overrides(form: str, photos: Path, output: Path) -> list[str]:
    if form != "list":
        return [f"data.root={output}"]
    lists = [f"data.{split}_list={output / data.SPLIT_LIST}" for split in data.SPLITS]
    return ["data.kind=list", f"data.root={photos}", *lists]
