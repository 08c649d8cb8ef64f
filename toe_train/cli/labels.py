"""`toe-tools labels`: label files for LV-ViT's training, made by a teacher."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toe_train.analysis.label_maker import make_labels
from toe_train.analysis.teacher import open_teacher
from toe_train.cli.launch import launch, process_count, under_torchrun
from toe_train.data import images_at, require_outside, single_class
from toe_train.errors import UserError
from toe_train.runs.processes import processes


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Makes the label files; returns the exit code."""
    for name, least in (("batch", 1), ("workers", 0), ("image_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    if not under_torchrun() and (count := process_count(options.nproc)) > 1:
        return launch(count, _for_each_process(options), module="toe_train.cli.tools")
    output = Path(options.output)
    with processes() as here:
        images = here.from_main(lambda: images_at(Path(options.images), options.exif_orientation))
        here.together(images.require_here)
        if fault := single_class(images):
            raise UserError(fault)
        require_outside(output, images.root)
        for line in images.notes() if here.is_main else []:
            print(f"note: {line}")
        teacher = here.together(
            lambda: open_teacher(
                options.teacher, options.teacher_weights, options.image_size, images.classes, options.teacher_averaged
            )
        )
        if here.is_main and teacher.told:
            print("\n  ".join([f"weights of the teacher from {options.teacher_weights}", *teacher.told]))
        made = make_labels(
            images,
            output,
            teacher,
            options.geometry,
            options.batch,
            options.workers,
            options.precision,
            here,
            progress=sys.stderr.isatty(),
        )
        if here.is_main:
            print(
                f"{output}: {made.made} label files made, {made.skipped} were there ({teacher.name}, {teacher.weights})"
            )
    return 0


def _for_each_process(options: argparse.Namespace) -> list[str]:
    """The arguments without `--nproc`, which torchrun would take for its own."""
    names = (
        "images",
        "output",
        "teacher",
        "teacher_weights",
        "image_size",
        "geometry",
        "exif_orientation",
        "batch",
        "workers",
        "precision",
    )
    arguments = ["labels"]
    for name in names:
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return [*arguments, "--teacher-averaged"] if options.teacher_averaged else arguments
