"""Cards of weights: how images were brought to them, by mean, std, interpolation and crop.

A card is timm's record of a model, config.json beside an export, transformers' preprocessor_config.json, or the
configuration of a run of toe-train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

from toe_train.build.weights.asked import Asked
from toe_train.build.weights.detector import STARTS
from toe_train.build.weights.source import CARD, FILES, is_of_a_run, locate, of_transformers, read_card
from toe_train.models import pretrained
from toe_train.recipes import HF, NEW, RunConfig, load_saved_values
from toe_train.runs import checkpoints

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def card_of(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """What the card of a run's initial weights tells, and what the card is; both empty for none.

    The names are mean, std, interpolation and crop_pct.

    Raises:
        UserError: there is no such file.
    """
    model, source = config.model, config.model.initial_weights
    if source is None and model.name.startswith(HF):
        source = model.name
    if source is None or source == NEW:
        return "", {}
    if source.startswith(HF):
        return card_of_transformers(source)
    if source in ("timm", "timm_or_new"):
        settings = timm.get_pretrained_cfg(STARTS.get(model.name, model.name), allow_unregistered=True)
        if settings is None or not settings.has_weights:
            return "", {}
        return f"timm's record of {settings.architecture}.{settings.tag}", of_timm(settings.to_dict())
    path = locate(Asked(source, f"model.initial_weights = {source}"))
    if is_of_a_run(path):
        run = load_saved_values(checkpoints.read(path)["config"], str(path))
        return f"the run of {path}", {
            "mean": run.augment.mean,
            "std": run.augment.std,
            "interpolation": run.evaluate.interpolation,
            "crop_pct": run.evaluate.crop_pct,
        }
    if of_transformers(path):
        return card_of_transformers(f"{HF}{path.absolute().parent}")
    beside = path.with_name(CARD)
    content = read_card(beside) if path.name in FILES else None
    return (str(beside), of_timm(content.get("pretrained_cfg", {}))) if content is not None else ("", {})


def of_timm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's record of weights tells."""
    found: dict[str, Any] = {key: tuple(map(float, settings[key])) for key in ("mean", "std") if settings.get(key)}
    if settings.get("interpolation") in RESAMPLING.values():
        found["interpolation"] = settings["interpolation"]
    if settings.get("crop_pct"):
        found["crop_pct"] = min(1.0, float(settings["crop_pct"]))
    return found


def of_preprocessor(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What preprocessor_config.json tells; without a centre crop, 1 is the share of the image that is seen."""
    found: dict[str, Any] = {}
    for key, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if settings.get(theirs):
            found[key] = tuple(map(float, settings[theirs]))
    if settings.get("do_normalize") is False:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if settings.get("resample") in RESAMPLING:
        found["interpolation"] = RESAMPLING[settings["resample"]]
    size, crop = (_side(settings.get(key)) for key in ("size", "crop_size"))
    if settings.get("do_center_crop") and size and crop:
        found["crop_pct"] = min(1.0, crop / size)
    elif size:
        found["crop_pct"] = 1.0
    return found


def preprocessor_of(config: RunConfig, size: int) -> dict[str, Any]:
    """preprocessor_config.json of a run's evaluation on images of `size` pixels."""
    augment, section = config.augment, config.evaluate
    numbers = {name: number for number, name in RESAMPLING.items()}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(size / section.crop_pct)},
        "resample": numbers[section.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(augment.mean),
        "image_std": list(augment.std),
        "do_convert_rgb": True,
    }


def card_of_transformers(name: str) -> tuple[str, dict[str, Any]]:
    """What preprocessor_config.json of a folder or of the hub tells, and what it is; both empty for none.

    Raises:
        UserError: it cannot be read, or the hub, which may have one, is out of reach.
    """
    settings = pretrained.read_json(name, pretrained.PREPROCESSOR)
    if settings is None:  # not all have one
        return "", {}
    return f"{pretrained.PREPROCESSOR} of {name.removeprefix(HF)}", of_preprocessor(settings)


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else None
