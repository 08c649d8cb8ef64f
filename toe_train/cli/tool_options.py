"""The options of each tool of `toe-tools`: a function for each, and TOOLS, which has them by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from toe_train.cores import usable_cores

MOST_CLASSES = 30  # that doctor lists unasked
NPROC = "processes on this machine (default: one per GPU)"
CONFIG = "YAML file, the name of a shipped one such as deit_tiny_toe_r05, or a run folder"
TRAINED = "a run folder (its best checkpoint), a checkpoint, an exported folder, or a file of published weights"


def _of_a_run(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("the run")
    group.add_argument("--config", required=True, metavar="FILE|RUN", help=CONFIG)
    group.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as with toe-train")


def _of_a_trained_model(sub: argparse.ArgumentParser) -> None:
    """`KEY=VALUE` may stand after them; see `cli.asked`."""
    group = sub.add_argument_group("the model")
    group.add_argument("overrides", nargs="*", metavar="RUN|KEY=VALUE", help=f"{TRAINED}; overrides as with toe-train")
    group.add_argument("--checkpoint", metavar="PATH", help="the same, in place of RUN")
    _of_its_weights(group)
    sub.set_defaults(takes_folder=True)


def _of_its_weights(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="raw or averaged weights (default: model)"
    )
    group.add_argument(
        "--config",
        metavar="FILE|RUN",
        help="configuration of a run with the model, where the weights do not bring their own",
    )


def _models(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--output", metavar="FILE", help="text file to write it to (default: print it)")


def _plan(sub: argparse.ArgumentParser) -> None:
    _of_a_run(sub)
    sub.add_argument("--classes", type=int, default=1000, metavar="N", help="width of the classifier (default: 1000)")
    equal = "in place of it write runs of as many FLOPs: plain for fewer epochs, on smaller images, random dropping"
    sub.add_argument("--equal-compute", action="store_true", help=equal)
    sub.add_argument("--output", metavar="DIR", help="folder that they go to")


def _bench(sub: argparse.ArgumentParser) -> None:
    _of_a_run(sub)
    what = sub.add_argument_group("what is timed")
    what.add_argument(
        "--what",
        choices=("step", "expansion", "loader", "reading", "start", "end-to-end", "saving"),
        default="step",
        metavar="WHAT",
        help="step: the training step of each stage and the whole schedule, beside the full-token step; expansion: "
        "dropping and merging alone, beside a literal version of its steps and the full-token step; loader: augmented "
        "images, beside timm's loader; reading: stored images at random, nothing decoded; start: listing the images, "
        "seconds and memory; end-to-end: the step with loading, on the run's images, beside the plain run; saving: a "
        "checkpoint (default: step)",
    )
    what.add_argument(
        "--beside",
        nargs="+",
        default=[],
        metavar="FILE|RUN|DIR",
        help="of step: further runs of the same model, whose steps take turns with the plain step and with those of "
        "--config; KEY=VALUE holds for all of them; of reading: a folder of the same images, with train/ and val/",
    )
    what.add_argument("--rounds", type=int, default=20, metavar="N", help="timed repeats (default: 20)")
    step = sub.add_argument_group("the step")
    step.add_argument("--batch", type=_numbers, metavar="N[,N...]", help="images of step and expansion (default: 32)")
    step.add_argument(
        "--sizes", type=_numbers, default=[], metavar="N[,N...]", help="image sizes of step (default: the run's)"
    )
    step.add_argument(
        "--graph",
        choices=("blocks", "model"),
        help="of step, where it is compiled: a graph for each kind of block, as in a run, or one of the model",
    )
    step.add_argument("--profile", metavar="FILE", help="also write a Chrome trace of a step of each stage there")
    files = sub.add_argument_group("files")
    files.add_argument("--output", metavar="DIR", help="where saving writes (default: runs)")
    files.add_argument("--json", metavar="FILE", help="also write the figures, device and versions there")


def _doctor(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", metavar="FILE|RUN", help="of a run, whose data set is looked at")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="FOLDER|KEY=VALUE",
        help="folder that holds train/ and val/ or archives, without or in place of a run's; or overrides, as with "
        "toe-train",
    )
    sub.add_argument("--classes", action="store_true", help=f"list the classes though they are over {MOST_CLASSES}")
    sub.add_argument(
        "--remove-list",
        metavar="FILE",
        help="new file that gets the paths of unreadable images, one a line: xargs -d '\\n' rm -- < FILE removes them",
    )
    sub.set_defaults(takes_folder=True)


def _evaluate(sub: argparse.ArgumentParser) -> None:
    _of_a_trained_model(sub)
    sub.add_argument(
        "--output", metavar="DIR", help="new folder for accuracy by class, confusion matrix and worst images"
    )


def _export(sub: argparse.ArgumentParser) -> None:
    _of_a_trained_model(sub)
    sub.add_argument("--output", required=True, metavar="DIR", help="new folder")
    sub.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        default="safetensors",
        help="onnx: model.onnx too, checked with onnxruntime (pip install 'toe-train[onnx]')",
    )
    sub.add_argument("--license", metavar="NAME", help="of the weights, e.g. cc-by-4.0 (default: none is named)")


class _StandsFirst(argparse.Action):
    """Refuses `--checkpoint` where the model stands before the images."""

    def __call__(self, parser: argparse.ArgumentParser, *given: object) -> None:
        parser.error("--checkpoint: predict takes the model first: toe-tools predict RUN IMAGE ...")


def _predict(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", help=TRAINED)
    sub.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, archives (.tar), and - for paths on stdin"
    )
    sub.add_argument("--checkpoint", action=_StandsFirst, help=argparse.SUPPRESS)
    _of_its_weights(sub.add_argument_group("the model"))
    answers = sub.add_argument_group("the answers")
    answers.add_argument(
        "--top", type=int, metavar="K", help="classes told of each image (default: 5, or all); boxes (all)"
    )
    answers.add_argument("--min-score", type=float, metavar="S", help="of a detector's boxes (default: 0.5)")
    answers.add_argument("--pictures", metavar="DIR", help="of a detector: new folder that gets the images with boxes")
    answers.add_argument("--output", metavar="FILE", help="new file, .csv or .jsonl (default: CSV on stdout)")
    answers.add_argument("--format", choices=("csv", "jsonl"), help="of stdout, or of an output of another suffix")
    speed = sub.add_argument_group("speed")
    speed.add_argument("--batch", type=int, metavar="N", help="images at a time (default: the run's evaluate.batch)")
    speed.add_argument("--workers", type=int, metavar="N", help="loader processes (default: the run's data.workers)")


def _labels(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--images",
        required=True,
        metavar="DIR",
        help="folder of class folders, e.g. /data/imagenet/train, or an archive",
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="gets <class>/<image>.pt; continued if it is there")
    teacher = sub.add_argument_group("the teacher")
    teacher.add_argument(
        "--teacher", metavar="NAME", help="a timm classifier; a checkpoint of toe-train brings its own"
    )
    teacher.add_argument(
        "--teacher-weights",
        default="pretrained",
        metavar="pretrained|random|PATH",
        help="timm's, none, or a run folder, a checkpoint, an exported folder or a state_dict (default: pretrained)",
    )
    teacher.add_argument("--teacher-averaged", action="store_true", help="of a file's weights, the averaged ones")
    teacher.add_argument("--image-size", type=int, metavar="N", help="side of the teacher's input (default: its own)")
    maps = sub.add_argument_group("the maps")
    maps.add_argument(
        "--geometry",
        choices=("full", "center_crop"),
        default="full",
        help="what a map covers: the whole image, squashed to a square, or its central square, as LV-ViT's own "
        "generator (default: full); token_labels.geometry of the run must be the same",
    )
    maps.add_argument(
        "--exif-orientation",
        choices=("ignore", "apply"),
        default="ignore",
        help="turn images as their EXIF blocks say (default: ignore); as data.exif_orientation of the run",
    )
    speed = sub.add_argument_group("speed")
    speed.add_argument("--batch", type=int, default=64, metavar="N", help="images per process at a time (default: 64)")
    speed.add_argument("--workers", type=int, default=8, metavar="N", help="loader processes per process (default: 8)")
    speed.add_argument(
        "--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the teacher; on a CPU fp16 is fp32"
    )
    speed.add_argument("--nproc", default="auto", metavar="auto|N", help=NPROC)


def _pack(sub: argparse.ArgumentParser) -> None:
    images = sub.add_argument_group("the images")
    images.add_argument(
        "--images", required=True, metavar="DIR", help="folder with train/ and val/, or any above images"
    )
    images.add_argument(
        "--from",
        dest="kind",
        choices=("image_folder", "tar", "list", "parquet"),
        default="image_folder",
        help="what --images holds, as data.kind of a run; or parquet files of the Hugging Face hub (default: "
        "image_folder)",
    )
    for split in ("train", "val"):
        images.add_argument(f"--{split}-list", metavar="FILE", help=f"as data.{split}_list of a run")
    images.add_argument("--label-key", metavar="NAME", help="of shards or parquet files (default: label)")
    copy = sub.add_argument_group("the copy")
    copy.add_argument("--output", required=True, metavar="DIR", help="gets the copy; continued if it is there")
    copy.add_argument(
        "--to",
        choices=("folder", "tar"),
        default="folder",
        help="folders, or archives, for data.kind=tar (default: folder)",
    )
    copy.add_argument(
        "--short-side", type=int, default=256, metavar="N", help="pixels; smaller images stay (default: 256)"
    )
    copy.add_argument("--quality", type=int, default=95, metavar="N", help="of the JPEGs, 1 to 100 (default: 95)")
    copy.add_argument(
        "--workers", type=int, default=usable_cores(), metavar="N", help="processes (default: one a core)"
    )


def _split(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("photos", metavar="PHOTOS", help="folder that holds a folder of images for each class")
    sub.add_argument("--output", required=True, metavar="DIR", help="new folder, gets train/ and val/")
    sub.add_argument(
        "--val", type=float, default=0.2, metavar="SHARE", help="of each class, for validation (default: 0.2)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="another one splits otherwise (default: 0)")
    sub.add_argument(
        "--form",
        choices=("links", "copies", "list"),
        default="links",
        help="hard links, copies, or images.csv of path, label and split (default: links)",
    )


def _report(sub: argparse.ArgumentParser) -> None:
    runs = "run folders, or folders of them; those ending in -s0, -s1, ... are one row"
    sub.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    sub.add_argument("--title", default="Runs", help="of the report")
    sub.add_argument("--output", metavar="DIR", help="also gets report.md, report.html and the figures")
    sub.add_argument("--into", metavar="FILE", help="text file that gets the tables between its marks of this report")
    against = "compare all rows with this one, in place of each with plain training and what is as dear (a row's name)"
    sub.add_argument("--against", metavar="ROW", help=against)
    sub.add_argument("--differences", action="store_true", help="print, and put --into, that table alone")


def _clean(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    sub.add_argument("--dry-run", action="store_true", help="list it, and remove nothing")
    sub.add_argument(
        "--set-aside",
        action="store_true",
        help="also earlier runs that --resume never set aside (RUN.old-N), and checkpoints that were found damaged",
    )


def _view(sub: argparse.ArgumentParser) -> None:
    _of_a_trained_model(sub)
    sub.add_argument("--images", required=True, nargs="+", metavar="FILE", help="image files")
    sub.add_argument("--output", required=True, metavar="FILE", help="picture (.png, .pdf, .svg) of what is kept")
    sub.add_argument("--features", metavar="FILE", help="also draw a t-SNE map of the tokens there")
    sub.add_argument("--blocks", default="1,2", metavar="N[,N...]", help="blocks of the map (default: 1,2)")
    sub.add_argument("--stage", type=int, default=1, metavar="N", help="of ToE, in the map (default: 1)")
    sub.add_argument("--min-score", type=float, metavar="S", help="of a detector's boxes (default: 0.5)")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers from 1 up, with commas between: 8,32")
    return [int(part) for part in parts]


TOOLS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "doctor": _doctor,
    "plan": _plan,
    "eval": _evaluate,
    "predict": _predict,
    "bench": _bench,
    "export": _export,
    "labels": _labels,
    "models": _models,
    "pack": _pack,
    "split": _split,
    "report": _report,
    "clean": _clean,
    "view": _view,
}
