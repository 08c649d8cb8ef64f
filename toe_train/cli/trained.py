"""The options of tools that take a trained model."""

from __future__ import annotations

import argparse


def add_trained_options(sub: argparse.ArgumentParser) -> None:
    """Gives a subcommand `--checkpoint`, `--weights` and `--config`; `KEY=VALUE` may stand after them."""
    sub.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a run folder (its best checkpoint), a checkpoint, an exported folder, or a file of published weights",
    )
    sub.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="raw or averaged weights (default: model)"
    )
    sub.add_argument(
        "--config", metavar="FILE", help="YAML file of a run with the model, where the weights do not bring their own"
    )
    sub.set_defaults(overrides=[])
