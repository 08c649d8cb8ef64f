"""What `--help` shows beside the options: the tools by purpose, and examples. No line has over 80 columns."""

from __future__ import annotations

import textwrap

WIDTH = 80

# By what they are for; each tool stands in one group.
GROUPS: dict[str, dict[str, str]] = {
    "images": {
        "doctor": "Look over a whole data set: every file is opened, every fault listed. Ends with 0 where a run would "
        "work.",
        "split": "Split a folder of photos by class into train/ and val/, equal images on one side.",
        "pack": "Copy images as smaller ones, which load faster, into folders or archives.",
        "labels": "Make token labels: what a teacher sees in each part of each image of a folder.",
    },
    "before a run": {
        "plan": "Print the stages of a run: tokens, learning rate, FLOPs, predicted speed-up.",
        "bench": "Time what a run spends its time on, in one go.",
        "models": "Try which families of models tokens can be dropped in, and say why not in others.",
    },
    "a trained model": {
        "eval": "Evaluate a trained model on its run's validation images, or on others (data.root=PATH), on all "
        "tokens; a run with Token Merging merges them as in its own evaluation.",
        "predict": "Say which classes images are of, or what objects they show; all tokens are seen.",
        "view": "Draw what Token Expansion keeps and merges of images, and where its tokens lie.",
        "export": "Write a trained model as safetensors in the layout of timm and the Hugging Face hub.",
    },
    "run folders": {
        "report": "Put runs into a table beside the paper's figures.",
        "clean": "Remove what a run no longer needs; its newest and its best checkpoint always stay.",
    },
}
TEXTS = {name: text for group in GROUPS.values() for name, text in group.items()}

TRAIN, OF_TOOLS = "toe-train", "toe-tools"
EXAMPLES: dict[str, dict[str, str]] = {  # of a command: what is typed, and what it does
    TRAIN: {
        "toe-train --config quickstart": "a small DeiT on scikit-learn's digits, in a minute or two on a CPU",
        "toe-train --config deit_tiny_toe_r05 data.root=/data/imagenet --dry-run": "the plan and the speed-up of a row "
        "of the paper; without --dry-run the run, on all GPUs of this machine",
        "toe-train --config photos.yaml optim.lr=1e-3 --output runs/photos_lr": "another value, another run folder",
        "toe-train --config runs/photos": "go on with a run where it stopped",
    },
    OF_TOOLS: {
        "toe-tools plan --config deit_tiny_toe_r05": "before a run: stages, FLOPs, predicted speed-up",
        "toe-tools predict runs/photos new_photos --output answers.csv": "after it: what images show",
        "toe-tools report runs": "all runs in a folder, in one table",
    },
    "doctor": {
        "toe-tools doctor photos_split": "a folder that holds train/ and val/",
        "toe-tools doctor --config runs/photos": "the data set of a run",
    },
    "split": {
        "toe-tools split photos --output photos_split": "a fifth of each class for validation, as hard links",
        "toe-tools split photos --output lists --form list --val 0.1": "a CSV file, for data.kind=list",
    },
    "pack": {
        "toe-tools pack --images /data/imagenet --output /data/imagenet_256": "short sides of 256 pixels",
        "toe-tools pack --images photos_split --output photos_tar --to tar": "archives, for data.kind=tar",
    },
    "labels": {
        "toe-tools labels --images imagenet/train --output maps --teacher nfnet_l0": "by a model of timm",
        "toe-tools labels --images train --output maps --teacher-weights runs/teacher": "by a run",
    },
    "plan": {
        "toe-tools plan --config deit_tiny_toe_r05": "a row of the paper",
        "toe-tools plan --config runs/photos epochs=60": "a run, if it had 60 epochs",
        "toe-tools plan --config photos.yaml --equal-compute --output equal": "simpler runs that cost as much",
    },
    "bench": {
        "toe-tools bench --config deit_tiny_toe_r05 --batch 128": "the step of each stage",
        "toe-tools bench --config deit_tiny_toe_r05 --beside deit_tiny_tome_r8": "two methods, in turns",
        "toe-tools bench --config runs/photos --what loader": "how fast images come",
    },
    "models": {
        "toe-tools models": "print the table",
        "toe-tools models --output models.md": "write it to a file",
    },
    "eval": {
        "toe-tools eval runs/photos": "the best checkpoint on the run's validation images",
        "toe-tools eval runs/photos data.root=other_photos --output mistakes": "on others, with the worst images",
        "toe-tools eval runs/photos/checkpoints/last.pt --weights ema": "the averaged weights of the newest one",
    },
    "predict": {
        "toe-tools predict runs/photos new_photos --output answers.csv": "all images of a folder",
        "toe-tools predict runs/cells a.jpg b.jpg --pictures boxes": "a detector's boxes, drawn",
        "find . -name '*.jpg' | toe-tools predict runs/photos - --top 1": "paths from another command",
    },
    "view": {
        "toe-tools view runs/photos --images a.jpg b.jpg --output kept.png": "the tokens of each stage",
        "toe-tools view runs/photos --images a.jpg --output kept.png --features map.png": "with a t-SNE map",
    },
    "export": {
        "toe-tools export runs/photos --output photos_model": "for timm.create_model and the hub",
        "toe-tools export runs/photos --output photos_onnx --format onnx": "model.onnx too",
    },
    "report": {
        "toe-tools report runs": "all runs in a folder",
        "toe-tools report runs/deit_tiny-s0 runs/deit_tiny_toe_r05-s0 --output report": "two, as a page with figures",
    },
    "clean": {
        "toe-tools clean runs/photos --dry-run": "list what would go",
        "toe-tools clean runs/photos runs/cells": "remove it",
        "toe-tools clean runs/photos --set-aside": "earlier runs of this folder and damaged files too",
    },
}


def tools_by_purpose() -> str:
    """The tools with what they do, in their groups."""
    lines = ["commands (toe-tools COMMAND --help tells more):"]
    for title, tools in GROUPS.items():
        lines += ["", f"  {title}:"]
        for name, text in tools.items():
            lines += textwrap.wrap(text, WIDTH, initial_indent=f"    {name:<8} ", subsequent_indent=" " * 13)
    return "\n".join(lines)


def examples(command: str) -> str:
    """The examples of a command, each under what it does."""
    lines = ["examples:"]
    for typed, text in EXAMPLES[command].items():
        lines += [*textwrap.wrap(text, WIDTH, initial_indent="  # ", subsequent_indent="  # "), f"  {typed}"]
    return "\n".join(lines)
