"""`toe-tools eval`: scores of a trained model."""

from __future__ import annotations

import argparse

from toe_train.build.evaluation import evaluate_trained
from toe_train.build.weights.trained import open_trained
from toe_train.runs.processes import processes


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Evaluates; returns the exit code."""
    with processes() as here:
        trained = open_trained(options.checkpoint, options.weights, options.config, options.overrides)
        scores, told = evaluate_trained(trained, here)
        if here.is_main:
            print("".join(f"  {line}\n" for line in told), end="")
            left_out = f"; {scores.left_out} that cannot be read left out" if scores.left_out else ""
            print(
                f"{trained.weights.path} ({options.weights}): top-1 {scores.top1:.3f} %, top-5 {scores.top5:.3f} %, "
                f"loss {scores.loss:.4f} over {scores.images} images{left_out}"
            )
    return 0
