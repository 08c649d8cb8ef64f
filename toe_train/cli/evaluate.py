"""`toe-tools eval`: scores of a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from toe_train import data
from toe_train.analysis.mistakes import ClassScore, class_scores, write_mistakes
from toe_train.analysis.tables import table
from toe_train.build.evaluation import evaluate_boxes, evaluate_trained
from toe_train.build.weights.trained import Trained
from toe_train.cli.asked import open_asked
from toe_train.cli.tool_options import MOST_CLASSES
from toe_train.errors import UserError
from toe_train.runs.processes import processes


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Evaluates; returns the exit code."""
    output = Path(options.output) if options.output else None
    with processes() as here:
        trained = open_asked(options, "eval")
        if trained.config.task_kind == "detection":
            if output is not None:
                raise UserError("--output holds a classifier's mistakes, and this model finds boxes; leave it out")
            boxes, told = evaluate_boxes(trained, here)
            if here.is_main:
                _tell_boxes(trained, options.weights, boxes, told)
            return 0
        if output is not None:
            here.main_only(lambda: data.require_new(output))
        found = evaluate_trained(trained, here)
        if here.is_main:
            scores = found.scores
            print("".join(f"  {line}\n" for line in found.told), end="")
            left_out = f"; {scores.left_out} that cannot be read left out" if scores.left_out else ""
            print(
                f"{trained.weights.path} ({options.weights}): top-1 {scores.top1:.3f} %, top-5 {scores.top5:.3f} %, "
                f"loss {scores.loss:.4f} over {scores.images} images{left_out}"
            )
            print(_by_class(class_scores(found)))
            if output is not None:
                write_mistakes(found, output)
                print(f"{output}: accuracy by class, confusion matrix, worst images, as CSV and pictures")
    return 0


def _by_class(scores: Sequence[ClassScore]) -> str:
    """A table of the classes; of many, the worst."""
    shown = list(scores)
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda one: 100.0 if one.accuracy is None else one.accuracy)[:MOST_CLASSES]
    rows = [
        (
            data.legible(one.name),
            str(one.images),
            "-" if one.accuracy is None else f"{one.accuracy:.2f}",
            str(one.wrongly),
        )
        for one in shown
    ]
    text = table(("class", "images", "top-1 %", "others taken for it"), rows)
    return text if len(shown) == len(scores) else f"{text}\nthe {len(shown)} worst of {len(scores)} classes"


def _tell_boxes(trained: Trained, which: str, found: dict[str, float], told: list[str]) -> None:
    print("".join(f"  {line}\n" for line in told), end="")
    sizes = ", ".join(f"{size} {found[f'ap_{size}']:.3f}" for size in ("small", "medium", "large"))
    terms = ", ".join(f"{name} {found[name]:.4f}" for name in ("loss_ce", "loss_bbox", "loss_giou"))
    print(
        f"{trained.weights.path} ({which}): AP {found['ap']:.3f}, AP50 {found['ap50']:.3f}, AP75 {found['ap75']:.3f} "
        f"({sizes}), {terms} over {found['images']} images"
    )
