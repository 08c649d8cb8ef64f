"""A trained model as a folder that timm and the Hugging Face hub know."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models._hub import save_config_for_hf

from toe_train import models
from toe_train.build.weights.trained import Trained
from toe_train.errors import UserError

# What timm's record of a model says of the weights that it was published with.
OF_OTHER_WEIGHTS = ("license", "description", "origin_url", "paper_name", "paper_ids", "notes")


def export(trained: Trained, folder: Path, licence: str | None = None) -> list[str]:
    """Writes `model.safetensors` and `config.json`, with class names, normalisation and evaluation crop.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` builds it again (an LV-ViT once `toe_train.models` is
    imported). The folder is whole or absent, and its files have the rights that the umask gives.

    Args:
        trained: the model.
        folder: a new or empty one.
        licence: of the weights, such as "cc-by-4.0"; None to name none.

    Returns:
        What was done to the weights, a line each.

    Raises:
        UserError: the weights are another model's; a folder with something in it, or that cannot be made.
        OSError: the disk does not take it.
    """
    _require_new(folder)
    config = trained.built_as
    section, augment, size = config.model, config.augment, config.model.image_size
    model: Any = models.create_model(section.name, trained.num_classes, 0.0, size, **section.kwargs)
    told = trained.put_in(model, with_head=trained.num_classes > 0)
    model.pretrained_cfg = {
        **{key: value for key, value in model.pretrained_cfg.items() if key not in OF_OTHER_WEIGHTS},
        "input_size": (3, size, size),
        "num_classes": trained.num_classes,
        "mean": augment.mean,
        "std": augment.std,
        "interpolation": config.evaluate.interpolation,
        "crop_pct": config.evaluate.crop_pct,
        "crop_mode": "center",
        "tag": "",
        **({"license": licence} if licence else {}),
    }
    with _whole(folder) as place:
        names = {"label_names": trained.weights.classes} if trained.weights.classes else {}
        arguments = {"img_size": size, **section.kwargs}
        # Its own writer of tensors makes files that their owner alone may read, and does not tell a full disk as such.
        save_config_for_hf(model, str(place / "config.json"), model_config=names, model_args=arguments)
        (place / "model.safetensors").write_bytes(save({key: v.contiguous() for key, v in model.state_dict().items()}))
    return told


def _require_new(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--output {folder} is not empty: name a new folder")
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--output {folder}: {place} is a file and no folder; name a new folder elsewhere")


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place after the block; nothing where the block fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.tmp")
        place.mkdir()
    except PermissionError as error:
        raise UserError(f"--output {folder} cannot be made ({error.strerror}); name another folder") from None
    try:
        yield place
        os.replace(place, folder.resolve())
    finally:
        shutil.rmtree(place, ignore_errors=True)
