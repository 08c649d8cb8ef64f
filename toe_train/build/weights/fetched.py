"""timm's own weights, which it fetches."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from timm.data import ImageNetInfo

from toe_train.build.weights.asked import Asked
from toe_train.build.weights.source import Weights

SECONDS = 5.0  # to wait for the server's first answer
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
    cached = _cached(settings.hf_hub_id) if settings.hf_hub_id else None
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
    """Refuses a model whose weights are neither in the cache nor to be fetched, at once: the hub's own client would try
    again and again for a minute.

    Raises:
        UserError: naming what was tried.
    """
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is None or settings.file or not settings.hf_hub_id:  # others are fetched with a single try
        return
    if _cached(settings.hf_hub_id) is None and (reason := _silence()):
        raise asked.fault(
            f"timm's weights of {name} are not on this machine, and {ENDPOINT} does not answer ({reason}); check the "
            "connection, or give a file"
        )


def _cached(hub: str) -> str | None:
    """The file of a model's weights in the hub's cache; None where it is not there."""
    found = (huggingface_hub.try_to_load_from_cache(hub, file) for file in FILES)
    return next((path for path in found if isinstance(path, str)), None)


def _silence() -> str:
    """Why the hub does not answer; empty where it does.

    It is asked in a thread, as the look-up of its name may take minutes and cannot be given a time.
    """
    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    heard: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=SECONDS).close()
            heard.append("")
        except urllib.error.HTTPError:  # it answers
            heard.append("")
        except (OSError, ValueError) as error:
            heard.append(str(getattr(error, "reason", error)) or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * SECONDS)
    return heard[0] if heard else f"nothing within {2 * SECONDS:g} seconds"
