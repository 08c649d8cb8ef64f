"""`toe-tools eval`: scores of a trained model."""

from __future__ import annotations

import argparse

from toe_train.build.evaluation import evaluate_boxes, evaluate_trained
from toe_train.build.weights.trained import Trained, open_trained
from toe_train.runs.processes import processes


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Evaluates; returns the exit code."""
    with processes() as here:
        trained = open_trained(options.checkpoint, options.weights, options.config, options.overrides)
        if trained.config.task_kind == "detection":
            found, told = evaluate_boxes(trained, here)
            if here.is_main:
                _tell_boxes(trained, options.weights, found, told)
            return 0
        scores, told = evaluate_trained(trained, here)
        if here.is_main:
            print("".join(f"  {line}\n" for line in told), end="")
            left_out = f"; {scores.left_out} that cannot be read left out" if scores.left_out else ""
            print(
                f"{trained.weights.path} ({options.weights}): top-1 {scores.top1:.3f} %, top-5 {scores.top5:.3f} %, "
                f"loss {scores.loss:.4f} over {scores.images} images{left_out}"
            )
    return 0


def _tell_boxes(trained: Trained, which: str, found: dict[str, float], told: list[str]) -> None:
    print("".join(f"  {line}\n" for line in told), end="")
    sizes = ", ".join(f"{size} {found[f'ap_{size}']:.3f}" for size in ("small", "medium", "large"))
    terms = ", ".join(f"{name} {found[name]:.4f}" for name in ("loss_ce", "loss_bbox", "loss_giou"))
    print(
        f"{trained.weights.path} ({which}): AP {found['ap']:.3f}, AP50 {found['ap50']:.3f}, AP75 {found['ap75']:.3f} "
        f"({sizes}), {terms} over {found['images']} images"
    )
