"""`toe-tools predict`: which classes images are of, or which objects they show."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from toe_train import data
from toe_train.build.box_prediction import FoundObjects, find_objects
from toe_train.build.prediction import Prediction, Predictor, open_predictor, predict
from toe_train.build.weights.trained import open_trained
from toe_train.cli.exits import USER_ERROR
from toe_train.cli.found import BoxPictures, box_writer, least_score, require_detector
from toe_train.errors import UserError
from toe_train.runs.processes import processes

TOP = 5
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl"}

Writer = Callable[[Prediction], None]


class Done(NamedTuple):
    """What was written of images, in words, and why some were left out."""

    told: list[str]
    faults: list[str]


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Predicts; returns the exit code: 0 where an image was read, though another was not.

    Notes and faults go to stderr, since the predictions may go to stdout.
    """
    for name, smallest in (("top", 1), ("batch", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise UserError(f"--{name} {value} must be at least {smallest}")
    form = _form(options.output, options.format)
    trained = open_trained(options.run, options.weights, options.config, option="")
    finds_boxes, known = trained.config.task_kind == "detection", trained.num_classes
    least = least_score(options.min_score, trained)
    if options.pictures:
        require_detector(trained, "--pictures")
    if not finds_boxes and options.top is not None and options.top > known > 0:
        raise UserError(f"--top {options.top}: the model knows {known} classes; use {known}")
    paths, notes = _images(options.images)
    batch = options.batch or trained.config.evaluate.batch
    workers = trained.config.data.workers if options.workers is None else options.workers
    workers = min(workers, -(-len(paths) // batch) if len(paths) > batch else 0)  # one for a batch at most
    with processes() as here:
        predictor = open_predictor(trained, here.device)
        print("\n  ".join([f"{trained.weights.path} ({options.weights})", *predictor.told, *notes]), file=sys.stderr)
        if finds_boxes:
            found = find_objects(predictor, paths, least, options.top, batch, workers)
            done = _write_objects(options, form, predictor, found, least)
        else:
            top = options.top or min(TOP, known)
            done = _write_classes(options.output, form, top, predict(predictor, paths, top, batch, workers))
    if done.faults:
        print(f"{len(done.faults)} of {len(paths)} images left out:", *done.faults, sep="\n  ", file=sys.stderr)
    for line in done.told:
        print(line, file=sys.stderr)
    return 0 if len(done.faults) < len(paths) else USER_ERROR


def _write_classes(output: str | None, form: str, top: int, predictions: Iterator[Prediction]) -> Done:
    """Writes the most probable classes of each image."""
    faults, count = list[str](), 0
    with _opened(output) as file:
        write = _writer(file, form, top)
        for found in predictions:
            if found.fault is None:
                write(found)
                count += 1
            else:
                faults.append(found.fault)
    return Done([f"{output}: {count} images"] if output else [], faults)


def _write_objects(
    options: argparse.Namespace, form: str, predictor: Predictor, everything: Iterator[FoundObjects], least: float
) -> Done:
    """Writes the boxes of each image, and draws them where asked to."""
    faults, counts, highest = list[str](), list[int](), 0.0
    pictures = None
    if options.pictures:
        pictures = BoxPictures(Path(options.pictures), predictor.classes, predictor.exif_orientation)
    with _opened(options.output) as file:
        write = box_writer(file, form, predictor.classes)
        for found in everything:
            if found.fault is not None:
                faults.append(found.fault)
                continue
            write(found)
            if pictures is not None:
                pictures.draw(found)
            counts.append(len(found.scores))
            highest = max(highest, found.highest)
    where = f"{options.output}: " if options.output else ""
    with_some = sum(map(bool, counts))
    told = [f"{where}{sum(counts)} boxes of a score of {least:g} or more in {with_some} of {len(counts)} images"]
    if counts and not with_some:
        told.append(f"the highest score is {highest:.3f}: a lower --min-score tells more")
    if pictures is not None:
        told.append(f"{options.pictures}: {len(counts)} pictures")
    return Done(told, faults)


def _form(output: str | None, asked: str | None) -> str:
    """csv or jsonl."""
    own = SUFFIXES.get(Path(output).suffix.lower()) if output else None
    if asked and own and asked != own:
        raise UserError(f"--format {asked}: --output {output} is a file of {own}; leave --format out, or rename it")
    if output and not (asked or own) and Path(output).suffix and not Path(output).exists():
        raise UserError(f"--output {output}: its suffix is of no form that is written; use .csv or .jsonl, or --format")
    return asked or own or "csv"


def _images(given: Sequence[str]) -> tuple[list[str | data.Span], list[str]]:
    """Paths of all images that were named, or their places in archives, and notes on what was passed over.

    A file that was named itself is taken whatever its suffix is.
    """
    paths: list[str | data.Span] = []
    notes: list[str] = []
    names: list[str] = []
    if given.count("-") > 1:
        raise UserError("- stands for the paths on stdin, which are read once; give it once")
    for name in given:
        if name == "-":
            lines = sys.stdin.buffer.read().split(b"\n")
            names += [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
        else:
            names.append(name)
    for name in names:
        passed = list[str]()
        if os.path.isdir(name):
            found, passed = data.all_images(Path(name))
            paths += [os.path.join(name, image) for image in found]
        elif name.lower().endswith(".tar") and os.path.isfile(name):
            inside, passed = data.all_in_archive(name)
            paths += inside
        else:
            paths.append(name)
        notes += [f"note: {line}" for line in passed]
    if not paths:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"{' '.join(given)}: there are no images{told}; give image files, folders of them, or archives (.tar)"
        )
    return paths, notes


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO]:
    """For the block, a new file, or stdout."""
    if output is None:
        # A name's bytes are written as they are, though they be no text.
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    try:
        Path(output).open("x").close()
    except FileExistsError:
        raise UserError(f"--output {output} is there already: remove it, or name a new file") from None
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): name another file") from None
    with open(output, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield file


def _writer(file: TextIO, form: str, top: int) -> Writer:
    if form == "jsonl":

        def write_line(found: Prediction) -> None:
            probabilities = [round(value, 6) for value in found.probabilities]
            line = {"image": found.image, "classes": found.classes, "probabilities": probabilities}
            file.write(json.dumps(line) + "\n")

        return write_line
    rows = csv.writer(file, lineterminator="\n")
    ranks = range(1, top + 1)
    rows.writerow(["image", *(name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}"))])

    def write_row(found: Prediction) -> None:
        pairs = zip(found.classes, found.probabilities, strict=True)
        rows.writerow([found.image, *(value for name, p in pairs for value in (name, f"{p:.6f}"))])

    return write_row
