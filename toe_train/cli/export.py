"""`toe-tools export`: a trained model for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from toe_train.build.export import export
from toe_train.build.weights.trained import open_trained
from toe_train.cli.trained import add_trained_options

TEXT = "Write a trained model as safetensors in the layout of timm and the Hugging Face hub."


def add_options(sub: argparse.ArgumentParser) -> None:
    """Gives the subcommand its options."""
    add_trained_options(sub)
    sub.add_argument("--output", required=True, metavar="DIR", help="new folder")
    sub.add_argument("--license", metavar="NAME", help="of the weights, e.g. cc-by-4.0 (default: none is named)")


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Exports the model; returns the exit code."""
    folder = Path(options.output)
    trained = open_trained(options.checkpoint, options.weights, options.config, options.overrides)
    told = export(trained, folder, options.license)
    print("\n  ".join([f"{trained.weights.path} ({options.weights})", *told]))
    print(f'{folder}: model.safetensors and config.json; timm.create_model("local-dir:{folder}", pretrained=True)')
    return 0
