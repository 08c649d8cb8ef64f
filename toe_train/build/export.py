"""A trained model as a folder that timm and the Hugging Face hub know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from toe_train import models
from toe_train.errors import UserError
from toe_train.runs.checkpoints import weights_of
from toe_train.training.resolution import fit_positions


def export(state: dict[str, Any], weights: str, folder: Path) -> None:
    """Writes `model.safetensors` and `config.json`, with class names, normalisation and evaluation crop.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it again (an LV-ViT once `toe_train.models` is
    imported).

    Args:
        state: a checkpoint's.
        weights: "model" for the raw weights, "ema" for the averaged ones.
        folder: a new or empty one.

    Raises:
        UserError: no such weights, or a folder with something in it.
    """
    chosen = weights_of(state, weights)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output {folder} is not empty: name a new folder")
    config, classes = state["config"], state["classes"]
    section, augment, evaluation = config["model"], config["augment"], config["evaluate"]
    size = section["image_size"]
    model: Any = models.create_model(section["name"], len(classes), 0.0, size, **section["kwargs"])
    model.load_state_dict(fit_positions(chosen, model))
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, size, size),
        "num_classes": len(classes),
        "mean": tuple(augment["mean"]),
        "std": tuple(augment["std"]),
        "interpolation": evaluation["interpolation"],
        "crop_pct": evaluation["crop_pct"],
        "crop_mode": "center",
        "tag": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": classes},
        model_args={"img_size": size, **section["kwargs"]},
        safe_serialization=True,
    )
