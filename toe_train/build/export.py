"""A trained model as a folder that timm and the Hugging Face hub know."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models._hub import save_config_for_hf

from toe_train import data, models
from toe_train.build.card import model_card
from toe_train.build.onnx_file import require_onnx, write_onnx
from toe_train.build.weights.cards import preprocessor_of
from toe_train.build.weights.trained import Trained
from toe_train.recipes import side_of

# What timm's record of a model says of the weights that it was published with.
OF_OTHER_WEIGHTS = ("license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def export(trained: Trained, folder: Path, licence: str | None = None, with_onnx: bool = False) -> list[str]:
    """Writes `model.safetensors` and `config.json`, with class names, normalisation and evaluation crop, and a card.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it again (an LV-ViT once `toe_train.models` is
    imported); a model of transformers, `AutoModelForImageClassification.from_pretrained(FOLDER)`. The folder is whole
    or absent, and its files have the rights that the umask gives.

    Args:
        trained: the model.
        folder: a new or empty one.
        licence: of the weights, such as "cc-by-4.0"; None to name none.
        with_onnx: write `model.onnx` too, see `write_onnx`.

    Returns:
        What was done to the weights, a line each.

    Raises:
        UserError: the weights are another model's; packages for ONNX are missing; a folder with something
            in it, or that cannot be made.
        OSError: the disk does not take it.
    """
    trained.refuse_detector()
    data.require_new(folder)
    if with_onnx:
        require_onnx()
    config = trained.built_as
    section, size = config.model, side_of(config.model.image_size)
    model: Any = models.create_model(section.name, trained.num_classes, 0.0, size, **section.arguments)
    told = trained.put_in(model, with_head=trained.num_classes > 0)
    if isinstance(model, models.TransformersClassifier):
        ours = preprocessor_of(config, size)
        writing: Any = partial(model.save, classes=trained.weights.classes, preprocessor=ours)
    else:
        writing = partial(_write_for_timm, trained, model, licence, size)
    with data.whole_folder(folder) as place:
        files = writing(place)
        if with_onnx:
            worst = write_onnx(model.eval(), size, place / "model.onnx")
            told = [*told, f"model.onnx: differs from torch by {worst:.1e} of the largest output, by onnxruntime"]
            files.append("model.onnx")
        parameters = sum(value.numel() for value in model.parameters())
        card = model_card(trained, parameters, licence, files)
        (place / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    return told


def _write_for_timm(trained: Trained, model: Any, licence: str | None, size: int, folder: Path) -> list[str]:
    """Weights and timm's card; the names of the files."""
    config = trained.built_as
    model.pretrained_cfg = {
        **{key: value for key, value in model.pretrained_cfg.items() if key not in OF_OTHER_WEIGHTS},
        "input_size": (3, size, size),
        "num_classes": trained.num_classes,
        "mean": config.augment.mean,
        "std": config.augment.std,
        "interpolation": config.evaluate.interpolation,
        "crop_pct": config.evaluate.crop_pct,
        "crop_mode": "center",
        "tag": "",
        **({"license": licence} if licence else {}),
    }
    names = {"label_names": trained.weights.classes} if trained.weights.classes else {}
    arguments = {"img_size": size, **config.model.kwargs}
    # Its own writer of tensors makes files that their owner alone may read, and does not tell a full disk as such.
    save_config_for_hf(model, str(folder / "config.json"), model_config=names, model_args=arguments)
    (folder / "model.safetensors").write_bytes(save({key: v.contiguous() for key, v in model.state_dict().items()}))
    return ["model.safetensors", "config.json"]
