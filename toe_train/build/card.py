"""A model card: what an exported model is, how it was trained, and what was measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toe_train._version import __version__
from toe_train.build.weights.trained import Trained
from toe_train.data import legible
from toe_train.recipes import HF, NEW, ExpansionConfig, RunConfig, side_of
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import Record, read_metrics

CLASSES_NAMED = 100


def model_card(trained: Trained, parameters: int, licence: str | None, files: list[str]) -> str:
    """The text of `README.md`, with the front matter that the Hugging Face hub reads.

    Nothing is claimed that was not measured: scores are those that the run wrote of this very checkpoint.

    Args:
        trained: the model.
        parameters: how many it has.
        licence: of the weights; None to name none.
        files: those beside the card.
    """
    config, classes = trained.built_as, trained.weights.classes
    library = "transformers" if config.model.name.startswith(HF) else "timm"
    front: dict[str, Any] = {"library_name": library, "tags": ["image-classification", library, "vision-transformer"]}
    if licence:
        front["license"] = licence
    size, augment = side_of(config.model.image_size), config.augment
    turned = ", turned upright as their EXIF blocks say," if trained.config.data.exif_orientation == "apply" else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {config.model.name}",
        "",
        f"- Model: {config.model.name}, {parameters / 1e6:.2f} million parameters, evaluated with all tokens",
        f"- Input: RGB images{turned} of {size} x {size} pixels; shorter side to "
        f"{int(size / config.evaluate.crop_pct)} ({config.evaluate.interpolation}), centre crop, "
        f"mean {list(augment.mean)}, std {list(augment.std)}",
        f"- Output: {_output(trained.num_classes, classes)}",
        f"- Weights: {'averaged' if trained.asked.averaged else 'raw'}",
        f"- Files: {', '.join(files)}",
        f"- Licence: {licence or 'none is named'}",
        "",
        "## Training",
        "",
        *(_training(config) if trained.weights.run else ["Not told by the file that was exported."]),
        "",
        "## Measured",
        "",
        *_measured(trained),
        "",
        f"Exported by toe-train {__version__}.",
    ]
    return "\n".join(lines) + "\n"


def _output(count: int, classes: list[str] | None) -> str:
    if not count:
        return "features; it has no classifier"
    if classes is None:
        return f"logits of {count} classes, whose names are not known"
    if count > CLASSES_NAMED:
        return f"logits of {count} classes; `label_names` in config.json names them"
    return f"logits of {count} classes: {', '.join(map(legible, classes))}"


def _training(config: RunConfig) -> list[str]:
    section = config.expansion
    start = {None: "new weights", NEW: "new weights", "timm": "timm's weights"}
    start |= {"timm_or_new": "timm's weights, or new ones"}
    if config.model.name.startswith(HF):
        start[None] = f"the weights of {config.model.name.removeprefix(HF)}"
    return [
        f"- Data: {config.data.kind}",
        f"- Epochs: {config.epochs}, global batch {config.global_batch}, peak learning rate {config.peak_lr:.3g} "
        f"({config.optim.name}), precision {config.train.precision}, seed {config.seed}",
        f"- Started from: {start.get(config.model.initial_weights, 'weights of another training')}",
        f"- Made cheaper by: {_expansion(section) if section else config.method.kind if config.method else 'nothing'}",
    ]


def _expansion(section: ExpansionConfig) -> str:
    stages = ", ".join(
        f"{rate:g} from epoch {first}" for first, rate in zip(section.stage_epochs, section.keep_rates, strict=True)
    )
    return f"Token Expansion (arXiv 2404.00672), share of the patch tokens kept: {stages}"


def _measured(trained: Trained) -> list[str]:
    """What the run's metric lines say of the epoch after which the checkpoint was written."""
    record, start = _records(trained)
    if record is None:
        return ["Nothing: the run's metric lines are not beside the checkpoint, or it was written within an epoch."]
    prefix = "ema_" if trained.asked.averaged else "val_"
    scores = {key: value for key, value in record.items() if key.startswith(prefix) and value is not None}
    of = ", of the model that merges tokens, which this plain one is not: its accuracy is another"
    lines = [
        f"After epoch {record['epoch'] + 1}, on the run's validation images{of if trained.merged_tokens else ''}:",
        "",
    ]
    if not scores:
        lines[-1:] = ["the model was not evaluated then."]
    else:
        lines += ["| score | value |", "|---|---:|", *(f"| {key} | {value:.4f} |" for key, value in scores.items())]
    hours = record.get("gpu_hours")
    if hours is not None:
        lines += ["", f"Until then it took {hours:.4g} hours of {start.get('device', 'one device')}, loading left out."]
    if "versions" in start:
        lines += ["", f"Trained with {start['versions']}."]
    return lines


def _records(trained: Trained) -> tuple[Record | None, Record]:
    """The lines of the epoch that the checkpoint ends, and of the run's last start."""
    run = trained.weights.run
    folder = RunFolder(Path(trained.weights.path).resolve().parents[1])
    if run is None or run["progress"]["step"] or not folder.metrics.is_file():
        return None, {}
    done = run["progress"]["epoch"] - 1
    epochs = [record for record in read_metrics(folder.metrics, "epoch") if record["epoch"] == done]
    starts = read_metrics(folder.metrics, "start")
    return (epochs[-1] if epochs else None), (starts[-1] if starts else {})
