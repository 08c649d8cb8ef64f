"""`toe-tools export`: a trained model for others."""

from __future__ import annotations

import argparse
from pathlib import Path

from toe_train.build.export import export
from toe_train.cli.asked import open_asked
from toe_train.recipes import HF


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Exports the model; returns the exit code."""
    folder = Path(options.output)
    trained = open_asked(options, "export")
    with_onnx = options.format == "onnx"
    told = export(trained, folder, options.license, with_onnx)
    print("\n  ".join([f"{trained.weights.path} ({options.weights})", *told]))
    if trained.config.model.name.startswith(HF):
        print(f'{folder}: transformers.AutoModelForImageClassification.from_pretrained("{folder}")')
        return 0
    files = f"model.safetensors, config.json, README.md{', model.onnx' if with_onnx else ''}"
    print(f'{folder}: {files}; timm.create_model("local-dir:{folder}", pretrained=True)')
    return 0
