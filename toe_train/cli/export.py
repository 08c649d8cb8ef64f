"""`toe-tools export`: a trained model for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from toe_train.build.export import export
from toe_train.runs import checkpoints

TEXT = "Write a checkpoint's model as safetensors in the layout of timm and the Hugging Face hub."


def add_options(sub: argparse.ArgumentParser) -> None:
    """Gives the subcommand its options."""
    sub.add_argument("--checkpoint", required=True, metavar="PATH", help="e.g. RUN/checkpoints/best.pt")
    sub.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="raw or averaged weights (default: model)"
    )
    sub.add_argument("--output", required=True, metavar="DIR", help="new folder")


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Exports the model; returns the exit code."""
    folder = Path(options.output)
    export(checkpoints.read(options.checkpoint), options.weights, folder)
    print(f'{folder}: model.safetensors and config.json; timm.create_model("local-dir:{folder}", pretrained=True)')
    return 0
