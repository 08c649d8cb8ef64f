"""timm's own weights, which it fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo

from toe_train.build.weights.asked import Asked
from toe_train.build.weights.source import Weights
from toe_train.models import hub

FILES = ("model.safetensors", "pytorch_model.bin")


def fetched_weights(name: str, asked: Asked) -> Weights:
    """timm's weights of a model, from its cache or from the Hugging Face hub.

    Raises:
        UserError: there are none of this model, the hub is out of reach, or a download fails.
    """
    if asked.averaged:
        raise asked.has_none()
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is None or not settings.has_weights:
        raise asked.fault(f"timm has no weights of {name}; give a file of weights")
    require_reachable(name, asked)
    cached = hub.cached_file(settings.hf_hub_id, FILES) if settings.hf_hub_id else None
    # Taken as a file, it needs no network: the hub's client would ask there whether it is the newest.
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": {"file": cached}} if cached and not settings.file else {}
    try:
        model = timm.create_model(name, pretrained=True, **overlay)
    except Exception as error:  # whatever a download may raise
        reason = " ".join(str(error).split())[:200]
        raise asked.fault(
            f"timm's weights of {name} are not to be had ({reason}); check the connection, or give a file"
        ) from None
    classes = ImageNetInfo().label_names() if model.num_classes == 1000 else None
    return Weights(
        Path("timm"), model.state_dict(), classes=classes, mean=tuple(settings.mean), std=tuple(settings.std)
    )


def require_reachable(name: str, asked: Asked) -> None:
    """Refuses a model whose weights are neither in the cache nor to be fetched, at once.

    Raises:
        UserError: naming what was tried.
    """
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is None or settings.file or not settings.hf_hub_id:  # others are fetched with a single try
        return
    if hub.cached_file(settings.hf_hub_id, FILES) is None:
        hub.require_hub(f"{asked.option}: timm's weights of {name} are", "check the connection, or give a file")
