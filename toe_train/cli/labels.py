"""`toe-tools labels`: label files for LV-ViT's training, made by a teacher."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toe_train.analysis.label_maker import make_labels
from toe_train.analysis.teacher import open_teacher
from toe_train.cli.launch import launch, process_count, under_torchrun
from toe_train.data import FolderImages, only_class
from toe_train.errors import UserError
from toe_train.runs.processes import processes

TEXT = "Make token labels: what a teacher sees in each part of each image of a folder."


def add_options(sub: argparse.ArgumentParser) -> None:
    """Gives the subcommand its options."""
    sub.add_argument(
        "--images", required=True, metavar="DIR", help="folder of class folders, e.g. /data/imagenet/train"
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="gets <class>/<image>.pt; continued if it is there")
    sub.add_argument("--teacher", metavar="NAME", help="a timm classifier; a checkpoint of toe-train brings its own")
    sub.add_argument(
        "--teacher-weights",
        default="pretrained",
        metavar="pretrained|random|PATH",
        help="timm's, none, or a run folder, a checkpoint, an exported folder or a state_dict (default: pretrained)",
    )
    sub.add_argument("--teacher-averaged", action="store_true", help="of a file's weights, the averaged ones")
    sub.add_argument("--image-size", type=int, metavar="N", help="side of the teacher's input (default: its own)")
    sub.add_argument(
        "--geometry",
        choices=("full", "center_crop"),
        default="full",
        help="what a map covers: the whole image, squashed to a square, or its central square, as LV-ViT's own "
        "generator (default: full); token_labels.geometry of the run must be the same",
    )
    sub.add_argument(
        "--exif-orientation",
        choices=("ignore", "apply"),
        default="ignore",
        help="turn images as their EXIF blocks say (default: ignore); as data.exif_orientation of the run",
    )
    sub.add_argument("--batch", type=int, default=64, metavar="N", help="images per process at a time (default: 64)")
    sub.add_argument("--workers", type=int, default=8, metavar="N", help="loader processes per process (default: 8)")
    sub.add_argument(
        "--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the teacher; on a CPU fp16 is fp32"
    )
    sub.add_argument(
        "--nproc", default="auto", metavar="auto|N", help="processes on this machine (default: one per GPU)"
    )


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
        images = here.from_main(lambda: FolderImages(Path(options.images), options.exif_orientation))
        here.together(images.require_here)
        if fault := only_class(images.root, images.classes):
            raise UserError(fault)
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
